"""The commands that train: train, with sweeps and folds, find_lr, logits, and benchmark."""

import json
import pathlib

import jax
import ml_collections

from densenet_jax import atomic_files
from densenet_jax import report as reports
from densenet_jax.benchmark import table as benchmark_table
from densenet_jax.benchmark.measure import benchmark as measure
from densenet_jax.cli.commands.runs import check_output, open_run
from densenet_jax.cli.commands.showing import write_report
from densenet_jax.cli.invocation import program
from densenet_jax.cli.weights import variant
from densenet_jax.evaluation import folds as cross_validation
from densenet_jax.evaluation import splits
from densenet_jax.report.analysis import finite
from densenet_jax.terminal import say
from densenet_jax.training import mesh as meshes
from densenet_jax.training import settings, teacher_logits
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import lr_range
from densenet_jax.training.jobs import sweep as sweeps
from densenet_jax.training.loop import train_and_evaluate
from densenet_jax.training.rundir import run_weights


def train(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    sweep: str | None = None,
    folds: str | None = None,
) -> None:
    """Trains, writes the report, and prints the paths of all files and the next commands.

    Args:
      config: the configuration.
      workdir: the run's directory; None: runs/NAME (runs/NAME-sweep for a sweep).
      name: the configuration's name.
      sweep: the grid of --sweep; None: a single run.
      folds: number of the folds of a cross-validation, with a run for each; None: none.
    """
    if folds is not None:
        cross_validate(config, workdir or f"runs/{name}-folds", folds, sweep)
        return
    workdir = workdir or (f"runs/{name}-sweep" if sweep else f"runs/{name}")
    if sweep:
        sweeps.sweep(config, workdir, sweep, lambda folder: [reports.LiveReport(folder)])
        return
    result = train_and_evaluate(config, workdir, [reports.LiveReport(workdir)])
    config = run_weights.read_config(workdir)
    write_report(config, workdir, "best", result["best"])
    longer = f"total_epochs={2 * config.total_epochs:g}"
    if config.total_steps is not None:
        longer = f"total_steps={2 * config.total_steps}"
    say(
        "",
        f"{settings.make_task(config).describe(result)} "
        f"after {result['step']} steps ({result['seconds']:.0f} s)",
        f"  metrics      {workdir}/metrics.jsonl",
        f"  checkpoints  {workdir}/checkpoints (best: step {result['best_step']})",
        f"  report       {workdir}/report.html",
        "next:",
        f"  {program()} evaluate --workdir={workdir}",
        f"  {program()} --workdir={workdir} --config.{longer}    # continues",
    )


def cross_validate(
    config: ml_collections.ConfigDict, workdir: str, folds: str, sweep: str | None
) -> None:
    """Trains a run for each fold, evaluates each on its own part, and prints the summary.

    Started again it continues. Writes folds.json into the directory.

    Args:
      config: the configuration that the runs share.
      workdir: of the cross-validation, which holds those of its runs.
      folds: their number.
      sweep: must be None.

    Raises:
      ConfigError: the number cannot be used, or there is a sweep, too.
    """
    if sweep or not folds.isdecimal() or not 2 <= int(folds) <= 1000:
        raise ConfigError(f"--folds={folds} must be a number of at least 2, without --sweep.")
    config = config.copy_and_resolve_references()
    config.data.folds = int(folds)
    runs = sweeps.plan(config, {"data.fold": list(range(int(folds)))}, workdir)
    found = []
    for one in runs:
        say(f"fold {one.values['data.fold']} of {folds}: {one.workdir}")
        folder = str(one.workdir)
        train_and_evaluate(one.config, folder, [reports.LiveReport(folder)])
        setup, variables, _ = open_run(run_weights.read_config(folder), folder, "best")
        variables = meshes.on_every_device(variables, setup.mesh)
        with jax.set_mesh(setup.mesh):
            found.append(splits.assess(setup, variables)[0])
    record = cross_validation.summarize(setup.task, found)
    path = pathlib.Path(workdir) / "folds.json"
    if jax.process_index() == 0:
        atomic_files.write(path, json.dumps(finite(record), indent=2) + "\n")
        say(*cross_validation.describe(setup.task, record, path).splitlines())


def find_lr(config: ml_collections.ConfigDict, workdir: str | None, name: str) -> None:
    """Prints the learning rate at which the loss falls fastest, and writes a plot.

    Args:
      config: the configuration.
      workdir: where find_lr.json and find_lr.svg are written; None: runs/NAME-find_lr.
      name: the configuration's name.
    """
    found = lr_range.test(config)
    paths = lr_range.write(found, pathlib.Path(workdir or f"runs/{name}-find_lr"))
    first, last = found["learning_rate"][0], found["learning_rate"][-1]
    say(f"learning rates from {first:.2g} to {last:.2g} in {len(found['loss'])} steps")
    if found["suggestion"] is None:
        say("the loss never fell: there is no suggestion")
    else:
        say(
            f"the loss falls fastest at {found['suggestion']:.2g}: a good peak for a schedule with "
            f"a warm-up, --config.optimizer.learning_rate={found['suggestion']:.2g}"
        )
    say(f"written: {paths[0]}, {paths[1]}")


def logits(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    name: str,
    weights: str | None,
    model: str | None,
    output: str | None,
) -> None:
    """Writes a teacher's logits of the training split, for config.distill.logits.

    Args:
      config: the student's configuration, for its data.
      workdir: the directory of the teacher's run, if `weights` is None.
      name: the configuration's name; not used.
      weights: the teacher's weights.
      model: the variant that the weights belong to; None: they say it.
      output: the file to write.

    Raises:
      ConfigError: configuration, teacher or output are missing, or do not fit.
    """
    source = weights or workdir
    if not source or not output or config is None:
        raise ConfigError(
            "logits needs --config=FILE for the data, a teacher as --weights=SOURCE or "
            "--workdir=DIR, and --output=FILE."
        )
    check_output(output)
    count = teacher_logits.write(config, source, output, variant(model, weights))
    of = f"{count} examples of {config.data.name}/{config.data.train_split}"
    say(f"written: {output}, the logits of {source} for {of}")


def benchmark(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, output: str | None
) -> None:
    """Measures the speed and memory of a configuration on this machine, and prints the figures.

    Args:
      config: the configuration.
      workdir: not used.
      name: not used.
      output: JSON file for the figures; None: they are only printed.
    """
    if output:
        check_output(output)
    found = measure(config)
    benchmark_table.show(found)
    if output:
        atomic_files.write(pathlib.Path(output), json.dumps(found, indent=2) + "\n")
