"""The commands: one function each, called with the parsed options (see `table.Command`)."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.table import Table

from densenet_jax import export as exporting
from densenet_jax import report as reports
from densenet_jax.benchmark import table as benchmark_table
from densenet_jax.benchmark.measure import benchmark as measure
from densenet_jax.cli.invocation import program
from densenet_jax.cli.weights import variant, weights
from densenet_jax.data import statistics as image_statistics
from densenet_jax.data.sources.source import DataError
from densenet_jax.evaluation import calibrate as calibration
from densenet_jax.evaluation import ensemble as averages
from densenet_jax.evaluation import features, per_example, splits, tables
from densenet_jax.evaluation import folds as cross_validation
from densenet_jax.evaluation import outside as ood
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
from densenet_jax.tasks.task import Task
from densenet_jax.terminal import Console, lines, say
from densenet_jax.training import experiment, settings, teacher_logits
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.jobs import lr_range
from densenet_jax.training.jobs import sweep as sweeps
from densenet_jax.training.loop import train_and_evaluate
from densenet_jax.training.rundir import atomic_files, run_classes, run_outputs, run_weights
from densenet_jax.weights import PUBLISHED, Pretrained, WeightsError
from densenet_jax.weights.published import IMAGENET

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


def embed(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    output: str | None,
    block: str,
    words: Sequence[str] = (),
) -> None:
    """Writes pooled features of both splits, and prints what simple models read from them.

    With images, their features are written instead.

    Args:
      config: the configuration, for the data; without a run its `init_from` names the weights.
      workdir: the run's directory; None: the weights of `config.init_from`.
      name: the configuration's name; not used.
      checkpoint: "best", "latest" or a step of the run.
      output: the .npz or .parquet file to write.
      block: whose feature maps are averaged, "block1", ..., or "final".
      words: image files, folders and globs; none: the splits of the data.

    Raises:
      ConfigError: there is no output, or no such block.
    """
    if not output or not output.endswith((".npz", ".parquet")):
        raise ConfigError("embed needs a file for the features: --output=features.npz (.parquet).")
    check_output(output)
    if workdir and (pathlib.Path(workdir) / "checkpoints").is_dir():
        setup, variables, _ = open_run(config, workdir, checkpoint)
    elif config.init_from:
        setup = experiment.build(config)
        variables = cast(Pretrained, setup.weights).variables  # a fresh classifier does not matter
    else:
        raise ConfigError("embed needs --workdir=DIR of a run, or --config.init_from=SOURCE.")
    variables = meshes.on_every_device(variables, setup.mesh)
    if words:
        sources = {"files": features.of_files(predicting.find(words))}
    else:
        sources = {"train": settings.train_source(setup.config), "eval": setup.eval_source}
    found = {}
    with jax.set_mesh(setup.mesh):
        for split, source in sources.items():
            own = found[split] = features.of_split(setup, variables, source, block)
            own["id"] = np.array([source.describe(int(i)) for i in own["index"]], str)
            if len(own["id"]) < len(source):
                say(f"{len(source) - len(own['id'])} images of {source.name} could not be read")
    if jax.process_index() == 0:
        features.write(output, found, setup.eval_source.class_names)
        width = next(iter(found.values()))["features"].shape[1]
        say(f"written: {output}, {width} features of {block} for each example")
        if words:
            return
        for title, metrics in features.quick_look(setup, found["train"], found["eval"]).items():
            shown = ", ".join(f"{m.title} {m.show(metrics)}" for m in setup.task.measured)
            say(f"{title}: {shown}")


def statistics(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, images: str
) -> None:
    """Prints the statistics of the training images, and the flags that normalise them.

    Args:
      config: the configuration, for its data.
      workdir: not used.
      name: the configuration's name; not used.
      images: largest number of images to read.

    Raises:
      ConfigError: the number is not one.
      DataError: the images cannot be read.
    """
    if not images.isdecimal() or not int(images):
        raise ConfigError(f"--images is {images!r}; it must be a whole number of at least 1.")
    data, source = config.data, settings.train_source(config)
    found = image_statistics.measure(
        source,
        image_size=data.image_size or IMAGENET.image_size,
        channels=data.channels,
        exif=data.exif,
        images=int(images),
    )
    say(*image_statistics.describe(found, source.name).splitlines())


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


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    crops: str,
    flip: bool,
    outside: str | None = None,
    coverage: str | None = None,
    more: Sequence[str] = (),
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
      outside: images of another kind, to measure how well they are told from those of the split.
      coverage: wanted share for conformal sets, whose true coverage is measured.
      more: directories of other runs, whose answers are averaged with those of the first.

    Raises:
      CheckpointError: the directory has no checkpoints, or not this one.
    """
    if more:
        ensemble(config, [cast(str, workdir), *more], checkpoint, crops, flip)
        return
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
        strange = ood.assess(setup, variables, own, outside) if outside else None
    data = setup.config.data
    images = {key: data[key] for key in ("image_size", "interpolation", "eval_crop")}
    record = {"of": of, "step": step, **images, **own.record}
    record["others"] = [other.record for other in others]
    if strange:
        record["outside"] = strange
    if outputs not in (None, setup.task.outputs):
        record["calibrated"] = True
    if coverage is not None:
        means = outputs or setup.task.outputs
        names = list(setup.eval_source.class_names)
        sets = sets_of(workdir, names, means, step, coverage)
        p = np.asarray(means(jnp.asarray(own.scores["logits"])))
        record["sets"] = conformal.coverage(sets, p, own.scores["label"], names)
    record["seconds"] = time.monotonic() - began
    write_evaluation(folder, record, own, outputs or setup.task.outputs, setup.task)


def write_evaluation(
    folder: pathlib.Path,
    record: dict[str, Any],
    own: splits.Assessed,
    outputs: Outputs,
    task: Task,
) -> None:
    """Writes evaluation.json and evaluation.npz, and prints the tables.

    Args:
      folder: where to write.
      record: of evaluation.json.
      own: the answers for the split.
      outputs: what they mean.
      task: of the model.

    Raises:
      ConfigError: the files cannot be written; the result is printed nevertheless.
    """
    path = folder / "evaluation.json"
    failed: OSError | None = None
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_files.write(path, json.dumps(finite(record), indent=2) + "\n")
            per_example.save(folder, own, outputs)
        except OSError as e:
            failed = e
    tables.show(record, task)
    if "outside" in record:
        say(tables.outside(record["outside"]))
    if "sets" in record:
        tables.show_sets(record["sets"])
    if failed is not None:
        say(task.describe(record))
        raise ConfigError(
            f"{failed.filename} cannot be written ({failed.strerror}): the result is only printed."
        )
    say(
        f"{task.describe(record)} on {record['examples']} examples   (written to {path}; the "
        f"answers for every example to {folder / per_example.FILE})"
    )


def ensemble(
    config: ml_collections.ConfigDict,
    workdirs: Sequence[str],
    checkpoint: str,
    crops: str,
    flip: bool,
) -> None:
    """Evaluates the mean of the answers of several runs on the data of the first.

    Writes ensemble/evaluation.json beside the runs, in their closest common directory.

    Args:
      config: the first run's configuration.
      workdirs: the directories of the runs.
      checkpoint: "best", "latest" or a step, of each run.
      crops, flip: as for `evaluate`.

    Raises:
      ConfigError: the runs have different classes or tasks.
    """
    members, steps, began = [], [], time.monotonic()
    for i, workdir in enumerate(workdirs):
        stored = run_weights.read_config(workdir)
        if stored.task != config.task:
            raise ConfigError(
                f"{workdir} has config.task={stored.task!r}, and {workdirs[0]} {config.task!r}."
            )
        own_config = config if i == 0 else averages.with_data_of(stored, config)
        setup, variables, step = open_run(own_config, workdir, checkpoint)
        variables = meshes.on_every_device(variables, setup.mesh)
        with jax.set_mesh(setup.mesh):
            members.append(splits.assess(setup, variables, crops=int(crops), flip=flip)[0])
        steps.append(f"{workdir} at step {step}")
    own = averages.average(setup.task, settings.make_loss(setup.config), members)
    data = setup.config.data
    images = {key: data[key] for key in ("image_size", "interpolation", "eval_crop")}
    record = {"of": f"the mean of {', '.join(steps)}", "step": None, **images, **own.record}
    record |= {"others": [], "members": [member.record for member in members]}
    record["seconds"] = time.monotonic() - began
    common = os.path.commonpath([pathlib.Path(w).resolve().parent for w in workdirs])
    folder = pathlib.Path(common) / "ensemble"
    write_evaluation(folder, record, own, setup.task.outputs, setup.task)
    for workdir, member in zip(workdirs, members, strict=True):
        say(f"  alone, {workdir}: {setup.task.describe(member.record)}")


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
        say(f"{of}: {note}")
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
        say(
            f"written to {path}: evaluate, predict, report and export use it. Measure on another "
            "split (--config.data.eval_split=test): on this one it looks better than it is."
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
        loaded = run_weights.load(weights, model)
        names = cast(Any, loaded.class_names or run_weights.class_names(weights))
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
        say(
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
        say(f"{path}   {in_bytes(path.stat().st_size)}")


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
    say(f"written: {path}")


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
        with jax.set_mesh(setup.mesh):
            reports.examine(setup, variables, workdir, step=step, evaluated=evaluated)
    except (CheckpointError, DataError) as e:
        first, *rest = lines(e)
        say(f"the report shows only curves, because the model cannot be examined: {first}", *rest)
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
        atomic_files.write(pathlib.Path(output), json.dumps(found, indent=2) + "\n")


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
