"""The commands that measure a trained network: evaluate, calibrate, embed."""

import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.cli.commands.answering import sets_of
from densenet_jax.cli.commands.runs import check_output, open_run
from densenet_jax.evaluation import calibrate as calibration
from densenet_jax.evaluation import ensemble as averages
from densenet_jax.evaluation import features, per_example, splits, tables
from densenet_jax.evaluation import outside as ood
from densenet_jax.prediction import predict as predicting
from densenet_jax.report.analysis import finite
from densenet_jax.scores import conformal
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import Task
from densenet_jax.terminal import say
from densenet_jax.training import experiment, settings
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.rundir import run_outputs, run_weights
from densenet_jax.weights import Pretrained


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
        if outside is not None or coverage is not None:
            raise ConfigError("--outside and --coverage are for a single run; give one --workdir.")
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
    record = {"of": of, "step": step, **_images(setup), **own.record}
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
        if run_outputs.read(workdir, setup.config, step) != setup.task.outputs:
            say(f"{workdir}: its {run_outputs.FILE} is not used; it is for this network alone")
    own = averages.average(setup.task, settings.make_loss(setup.config), members)
    of = f"the mean of {', '.join(steps)}"
    record = {"of": of, "step": None, **_images(setup), **own.record}
    record |= {"others": [], "members": [member.record for member in members]}
    record["seconds"] = time.monotonic() - began
    common = os.path.commonpath([pathlib.Path(w).resolve().parent for w in workdirs])
    folder = pathlib.Path(common) / "ensemble"
    write_evaluation(folder, record, own, setup.task.outputs, setup.task)
    for workdir, member in zip(workdirs, members, strict=True):
        say(f"  alone, {workdir}: {setup.task.describe(member.record)}")


def _images(setup: experiment.Experiment) -> dict[str, Any]:
    """Returns how the images are prepared, for evaluation.json."""
    return {key: setup.config.data[key] for key in ("image_size", "interpolation", "eval_crop")}


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
