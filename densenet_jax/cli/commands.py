"""The commands: one function each, called with the parsed options (see `table.Command`)."""

import json
import os
import pathlib
import sys
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from densenet_jax import export as exporting
from densenet_jax import report as reports
from densenet_jax.benchmark import table as benchmark_table
from densenet_jax.benchmark.measure import benchmark as measure
from densenet_jax.cli.invocation import program
from densenet_jax.cli.weights import variant, weights
from densenet_jax.data.sources.source import DataError
from densenet_jax.evaluation import calibrate as calibration
from densenet_jax.evaluation import per_example, splits, tables
from densenet_jax.export.bundle import ExportError
from densenet_jax.export.onnx import calibration as calibrating
from densenet_jax.models import summary
from densenet_jax.prediction import output as answers
from densenet_jax.prediction import predict as predicting
from densenet_jax.prediction.predict import PredictError
from densenet_jax.report import ReportError
from densenet_jax.report.analysis import finite
from densenet_jax.report.page import in_bytes
from densenet_jax.scores import conformal
from densenet_jax.scores.labels import ScoresError
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training import experiment, settings, teacher_logits
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.jobs import sweep as sweeps
from densenet_jax.training.loop import train_and_evaluate
from densenet_jax.training.rundir import atomic_files, run_classes, run_outputs, run_weights
from densenet_jax.weights import PUBLISHED, Pretrained, WeightsError

__all__ = ["weights"]  # a command with a module of its own

# Errors that the user can correct; they are shown without a traceback.
USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    WeightsError,
    PredictError,
    ReportError,
    ExportError,
    ScoresError,
)


def train(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, sweep: str | None = None
) -> None:
    """Trains, writes the report, and prints the paths of all files and the next commands.

    Args:
      config: the configuration.
      workdir: the run's directory; None: runs/NAME (runs/NAME-sweep for a sweep).
      name: the configuration's name.
      sweep: the grid of --sweep; None: a single run.
    """
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
    print(
        f"\n{settings.make_task(config).describe(result)} "
        f"after {result['step']} steps ({result['seconds']:.0f} s)\n"
        f"  metrics      {workdir}/metrics.jsonl\n"
        f"  checkpoints  {workdir}/checkpoints (best: step {result['best_step']})\n"
        f"  report       {workdir}/report.html\n"
        f"next:\n"
        f"  {program()} evaluate --workdir={workdir}\n"
        f"  {program()} --workdir={workdir} --config.{longer}    # continues"
    )


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
    print(f"written: {output}, the logits of {source} for {of}")


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    crops: str,
    flip: bool,
) -> None:
    """Evaluates a run's checkpoint, or without a directory the weights of `config.init_from`.

    Writes evaluation.json and prints a table.

    Args:
      config: the configuration.
      workdir: the run's directory; None: runs/NAME.
      name: the configuration's name.
      checkpoint: "best", "latest" or a step.
      crops: number of views of each image, "1" or "5".
      flip: whether to evaluate the mirror images of the views, too.

    Raises:
      CheckpointError: the directory has no checkpoints, or not this one.
    """
    if config.init_from and not workdir:
        # The weights themselves are evaluated: the result does not belong in a run's directory.
        workdir, checkpoint = f"runs/{name}-init_from", ""
    workdir = workdir or f"runs/{name}"
    folder = pathlib.Path(workdir)
    if checkpoint and not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir} is not the directory of a run: it has no checkpoints.")
    began = time.monotonic()
    step: int | None = None
    outputs: Outputs | None = None
    if checkpoint:
        setup, variables, step = open_run(config, workdir, checkpoint)
        of, outputs = f"step {step}", run_outputs.read(workdir, setup.config, step)
    else:
        setup, of = experiment.build(config), config.init_from
        variables = trained_variables(setup)
    variables = meshes.on_every_device(variables, setup.mesh)
    with jax.set_mesh(setup.mesh):
        own, *others = splits.assess(setup, variables, crops=int(crops), flip=flip, outputs=outputs)
    data = setup.config.data
    images = {key: data[key] for key in ("image_size", "interpolation", "eval_crop")}
    record = {"of": of, "step": step, **images, **own.record}
    record["others"] = [other.record for other in others]
    if outputs not in (None, setup.task.outputs):
        record["calibrated"] = True
    record["seconds"] = time.monotonic() - began
    path = folder / "evaluation.json"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write(path, json.dumps(finite(record), indent=2) + "\n")
        per_example.save(folder, own, outputs or setup.task.outputs)
    tables.show(record, setup.task)
    print(
        f"{setup.task.describe(own.record)} on {own.record['examples']} examples   (written to "
        f"{path}; the answers for every example to {folder / per_example.FILE})"
    )


def trained_variables(setup: experiment.Experiment) -> dict[str, Any]:
    """Returns the variables of the weights that an experiment starts from, to evaluate them.

    Raises:
      ConfigError: their classifier was not trained for the classes of the data.
    """
    found, of = cast(Pretrained, setup.weights), setup.config.init_from
    if found.report.fresh:
        why = "; ".join(found.notes) or "the numbers of classes differ"
        raise ConfigError(
            f"{of} has no classifier for the classes of {setup.eval_source.name} ({why}): its "
            "answers would be random. Choose data of its classes, or train it first."
        )
    for note in found.notes:
        print(f"{of}: {note}")
    return found.variables


def calibrate(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    thresholds: str | None,
) -> None:
    """Calibrates the probabilities of a run on its evaluation split, and chooses thresholds.

    Writes calibration.json and calibration.npz into the run's directory, which `evaluate`,
    `predict` and `export` use from then on, and prints the reliability before and after.

    Args:
      config: the run's configuration.
      workdir: the run's directory; None: runs/NAME.
      name: the configuration's name.
      checkpoint: "best", "latest" or a step.
      thresholds: the rule for the thresholds of several labels, see `evaluation.calibrate.fit`.
    """
    workdir = workdir or f"runs/{name}"
    setup, variables, step = open_run(config, workdir, checkpoint)
    variables = meshes.on_every_device(variables, setup.mesh)
    with jax.set_mesh(setup.mesh):
        own = splits.answers(setup, variables, setup.eval_source)
    split = f"{setup.config.data.name}/{setup.config.data.eval_split}"
    names = setup.eval_source.class_names
    record = calibration.fit(setup.task, own, names, rule=thresholds, data=split, step=step)
    if jax.process_index() == 0:
        per_example.save_logits(workdir, own, step)
        path = run_outputs.write(workdir, record)
        tables.show_calibration(record)
        print(
            f"written to {path}: evaluate, predict and export use it. Measure on another split "
            "(--config.data.eval_split=test): on this one it looks better than it is."
        )


def open_run(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str
) -> tuple[experiment.Experiment, dict[str, Any], int]:
    """Opens a run for evaluation.

    Args:
      config: the run's configuration; its `init_from` is cleared.
      workdir: the run's directory.
      checkpoint: "best", "latest" or a step.

    Returns:
      the experiment; the variables of the checkpoint, {"params", "batch_stats"}; and its step.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    with config.unlocked():
        config.init_from = ""  # the checkpoint replaces the initial weights
    setup = experiment.build(config)
    run_classes.check(setup.eval_source.class_names, pathlib.Path(workdir))
    _, variables, _, step = run_weights.read(workdir, setup.config, checkpoint)
    return setup, variables, step


def predict(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    weights: str | None,
    model: str | None,
    checkpoint: str,
    cam: str | None,
    format: str,
    top: str | None = None,
    coverage: str | None = None,
) -> int:
    """Prints a model's predictions for images; returns 2 if any image could not be read, else 0.

    Args:
      config: the run's configuration; not used with `weights`.
      words: image files, folders, globs, file:// URLs, or - for standard input.
      workdir: the run's directory; not used with `weights`.
      weights: published weights or a file; None: the run.
      model: the variant that the weights belong to; None: they say it.
      checkpoint: "best", "latest" or a step of the run.
      cam: folder for class activation maps; None: none are written.
      format: "table", "json" or "csv".
      top: number of classes for each image, or "all"; None: as the task has it.
      coverage: answer with sets of classes that contain the right one this often.
    """
    model = variant(model, weights)
    if weights:
        names = run_weights.class_names(weights)  # if it is the directory of a run
        loaded = run_weights.load(weights, model)
        network, variables, preprocessing = loaded.model, loaded.variables, loaded.preprocessing
        outputs, step = loaded.outputs, None
    else:
        folder = cast(str, workdir)  # the command line has --weights or --workdir
        given = cast(ml_collections.ConfigDict, config)
        network, variables, preprocessing, step = run_weights.read(folder, given, checkpoint)
        names, outputs = run_weights.class_names(folder), run_outputs.read(folder, given, step)
    found = predicting.predict(
        *(network, variables, preprocessing, names, words),
        outputs=outputs,
        top=_count(top),
        conformal=None if coverage is None else sets_of(workdir, names, outputs, step, coverage),
        cam=cam,
    )
    return answers.show(found, format)


def sets_of(
    workdir: str | None,
    names: list[str] | None,
    outputs: Outputs,
    step: int | None,
    coverage: str,
) -> conformal.Conformal:
    """Returns the conformal sets of a run for a wanted coverage, and names classes without one.

    Args:
      workdir: the run's directory; None: there is none.
      names: of its classes, in label order.
      outputs: what its outputs mean.
      step: of the checkpoint; None: the weights are no run.
      coverage: the wanted share, a number between 0 and 1.

    Raises:
      PredictError: the share is not a number, or the run has not been calibrated.
    """
    try:
        alpha = round(1 - float(coverage), 9)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < 1:
        raise PredictError(f"--coverage={coverage} must be a number between 0 and 1, such as 0.9.")
    if outputs.task != "classification":
        raise PredictError(f"--coverage is for classification; the task is {outputs.task}.")
    kept = None if step is None else per_example.load_logits(cast(str, workdir), step)
    if kept is None:
        raise PredictError(
            "--coverage needs a run that was calibrated at this checkpoint: "
            f"{program()} calibrate --workdir=DIR"
        )
    logits, labels = kept
    found = conformal.fit(np.asarray(outputs(jnp.asarray(logits))), labels, alpha)
    lacking = [str(i) if names is None else names[i] for i in np.flatnonzero(found.too_few)]
    if lacking:
        print(
            f"warning: in every set, because calibration has too few examples of them for a "
            f"coverage of {coverage}: {', '.join(lacking)}",
            file=sys.stderr,
        )
    return found


def _count(top: str | None) -> int | None:
    """Returns the number of classes that --top asks for; None: as the task has it.

    Raises:
      PredictError: it is neither a number above 0 nor `all`.
    """
    if top is None:
        return None
    if top == "all":
        return 10**9
    if not top.isdecimal() or not int(top):
        raise PredictError(f"--top={top} must be a number above 0, or all.")
    return int(top)


def export(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    weights: str | None,
    model: str | None,
    checkpoint: str,
    format: str,
    output: str | None,
    preprocess: bool,
    int8: bool,
    calibration: str | None,
) -> None:
    """Writes a model in another format, and prints the paths and sizes of the files.

    Args:
      config: the run's configuration; not used with `weights`.
      workdir: the run's directory; not used with `weights`.
      weights: published weights or a file; None: the run.
      model: the variant that the weights belong to; None: they say it.
      checkpoint: "best", "latest" or a step of the run.
      format: "onnx", "stablehlo", "safetensors" or "triton".
      output: the folder or file to write.
      preprocess: whether the exported model includes normalisation and softmax.
      int8: whether to write a quantised version, too.
      calibration: folder of images for `int8`; None: the run's own data.

    Raises:
      ExportError: the output or the images for calibration are missing, or the export fails.
    """
    if not output:
        raise ExportError(f"export needs --output=PATH: a folder, as in --output=exports/{format}.")
    if int8 and weights and not calibration:
        raise ExportError(
            "--int8 with --weights needs images for calibration: add --calibration=DIR."
        )
    model = variant(model, weights)
    if weights:
        bundle = exporting.of_weights(weights, model=model)
    else:
        # The command line has --weights or --workdir.
        bundle = exporting.of_run(cast(str, workdir), checkpoint, config)
    images = None
    if int8 and calibration:
        images = calibrating.of_folder(bundle, calibration)
    elif int8:
        images = calibrating.of_run(bundle, config)
    files = exporting.export(bundle, format, output, preprocess=preprocess, int8=images)
    for path in files:
        print(f"{path}   {in_bytes(path.stat().st_size)}")


def report(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    checkpoint: str,
) -> None:
    """Writes the report of a run again, or a page that compares several runs.

    Args:
      config: the run's configuration; None: read from the directory.
      words: directories of runs.
      workdir: one more directory; None: none.
      checkpoint: "best", "latest" or a step, for the report of a single run.
    """
    folders = [*([workdir] if workdir else []), *words]
    if len(folders) > 1:
        path = reports.write_report(folders)
    else:
        config = config or run_weights.read_config(folders[0])
        path = write_report(config, folders[0], checkpoint)
    print(f"written: {path}")


def write_report(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str,
    evaluated: Evaluated | None = None,
) -> pathlib.Path:
    """Writes report.html and returns its path.

    If checkpoint and data are available, the report includes predictions and what the model has
    learned; otherwise it has curves only, and the reason is printed.

    Args:
      config: the run's configuration.
      workdir: the run's directory.
      checkpoint: "best", "latest" or a step.
      evaluated: the evaluation of this checkpoint, if it was just made; None: evaluate again.
    """
    try:
        setup, variables, step = open_run(config, workdir, checkpoint)
        if setup.task.name != "classification":
            raise DataError("reports of other tasks than classification are not written yet.")
        with jax.set_mesh(setup.mesh):
            reports.examine(setup, variables, workdir, step=step, evaluated=evaluated)
    except (CheckpointError, DataError) as e:
        print(f"the report shows only curves, because the model cannot be examined: {e}")
    if jax.process_index() == 0:
        reports.write_report(workdir)
    return pathlib.Path(workdir) / "report.html"


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
        pathlib.Path(output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def check_output(path: str) -> None:
    """Checks, before a long computation, that the file for its result can be written.

    Raises:
      ConfigError: it cannot.
    """
    folder = pathlib.Path(path).resolve().parent
    if pathlib.Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"--output={path} cannot be written; choose a file in an existing, writable folder."
        )


def models(config: ml_collections.ConfigDict | None) -> None:
    """Prints the table of model variants."""
    table = Table("model", "parameters", "GMAC", "at", "published weights (top-1, %)", box=None)
    for name, image_size, size in summary.table():
        weights = ", ".join(
            f"{key.partition('.')[2]} {row.accuracy.top1:g}"
            for key, row in PUBLISHED.items()
            if key.partition(".")[0] == name
        )
        table.add_row(
            name,
            f"{size.parameters:,}",
            f"{size.multiply_adds / 1e9:.2f}",
            str(image_size),
            weights or "-",
        )
    for column in table.columns[1:4]:
        column.justify = "right"
    Console().print(table)
