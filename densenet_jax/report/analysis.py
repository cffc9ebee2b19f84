"""The parts of a report that need the model, computed once and stored in the run's directory.

`write_report` then reads files only, so it runs on a machine without the data or an accelerator.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.data.sources import imagenet_classes
from densenet_jax.evaluation import per_example
from densenet_jax.report import (
    estimates,
    feature_reuse,
    model_summary,
    predictions,
    shown,
    worst,
)
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.predictions import Predictions
from densenet_jax.report.run_files import ReportError
from densenet_jax.training import batches
from densenet_jax.training import mesh as meshes
from densenet_jax.training.eval_loop import Evaluated, gather
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.rundir import run_outputs

FILE = "insight.json"
PICTURES = 18  # number of pictures of the surest mistakes, and of the least sure hits
ABLATION_BATCH = 256  # images


def examine(
    setup: Experiment,
    variables: Any,
    workdir: str | pathlib.Path,
    *,
    step: int,
    ablation_examples: int = 0,
    evaluated: Evaluated | None = None,
    into: str | pathlib.Path | None = None,
) -> Predictions | Estimates:
    """Writes predictions.npz and insight.json into a run's directory.

    Args:
      setup: the experiment, from `training.experiment.build`.
      variables: {"params": ..., "batch_stats": ...} of a checkpoint, on any device.
      workdir: the run's directory.
      step: of the checkpoint.
      ablation_examples: number of examples on which the accuracy without each single connection is
        measured, at a cost of (connections) x (examples) inferences; 0: no ablation.
      evaluated: an evaluation of the run; if it is of the same step, its predictions are reused.
      into: another folder for the files; None: the run's directory.

    Returns:
      The predictions of a classifier, or the estimates of several labels or numbers.

    Raises:
      CheckpointError: calibration.json does not fit the run.
      ReportError: an ablation of another task than classification.
    """
    variables = meshes.on_every_device(variables, setup.mesh)
    if ablation_examples and setup.task.name != "classification":
        raise ReportError(
            f"ablation_examples measures the accuracy of classes, and the task is "
            f"{setup.task.name}; leave it out."
        )
    found, into = _answers(setup, variables, str(workdir), step, evaluated), into or workdir
    if isinstance(found, Predictions):
        found = with_pictures(setup, variables, found)
        write: Callable[[], Any] = functools.partial(predictions.save, found, into)
    else:
        found = _with_pictures(setup, variables, found)
        write = functools.partial(estimates.save, found, into)
    insight = {
        "step": step,
        "model": model_summary.summarize(setup.model, setup.image_shape, setup.config.batch_size),
        **_reuse(setup, variables, ablation_examples),
    }
    if jax.process_index() == 0:
        write()
        atomic_files.write(pathlib.Path(into) / FILE, json.dumps(finite(insight)) + "\n")
    return found


def _answers(
    setup: Experiment, variables: Any, workdir: str, step: int, evaluated: Evaluated | None
) -> Predictions | Estimates:
    """Returns a model's answers for the evaluation split, calibrated as the run is."""
    data, task = setup.config.data, setup.task
    outputs = run_outputs.read(workdir, setup.config, step)
    calibrated = outputs != task.outputs
    if evaluated is not None and evaluated.step == step and not calibrated:
        answers = evaluated.answers
    else:
        split = batches.eval_batches(setup)
        answers = predictions.answers(setup.model, variables, setup.normalize, split, task, outputs)
    names = imagenet_classes.readable(setup.eval_source.class_names)
    about: dict[str, Any] = {"step": step, "data": f"{data.name}/{data.eval_split}"}
    about["calibrated"] = run_outputs.split(workdir) if calibrated else ""
    if task.name == "classification":
        found: Any = predictions.merge(answers, names, **about)
    else:
        arrays: dict[str, Any] = gather(answers)
        arrays["values"] = arrays.pop(outputs.noun)
        if task.name == "multilabel":
            about["thresholds"] = np.resize(outputs.thresholds or 0.5, len(names)).astype(
                np.float64
            )
        found = Estimates(task.name, class_names=np.array(names, str), **arrays, **about)
    columns = per_example.columns(setup.eval_source, found.index)
    return dataclasses.replace(found, columns=columns)


def with_pictures(setup: Experiment, variables: Any, found: Predictions) -> Predictions:
    """Adds pictures and class activation maps of the surest mistakes and the least sure hits.

    Images that cannot be read get no picture.

    Args:
      setup: the experiment.
      variables: of the model.
      found: the predictions, without pictures.
    """
    rows = np.r_[found.surest_mistakes(PICTURES), found.least_sure_hits(PICTURES)]
    added = shown.with_maps(setup, variables, found.index[rows], found.classes[rows, 0])
    if not added:
        return found
    return dataclasses.replace(found, shown=rows[added.pop("kept")], **added)


def _with_pictures(setup: Experiment, variables: Any, found: Estimates) -> Estimates:
    """Does the same for the worst answers about each label or number."""
    rows, labels = worst.pictured(found)
    added = shown.with_maps(setup, variables, found.index[rows], labels)
    if not added:
        return found
    kept = added.pop("kept")
    return dataclasses.replace(found, shown=rows[kept], shown_for=labels[kept], **added)


def _reuse(setup: Experiment, variables: Any, ablation_examples: int) -> dict[str, Any]:
    """Returns the analysis of feature reuse for insight.json, see `feature_reuse`.

    Returns:
      {"reuse": [[[weight, ...], ...], ...]} by block, source and target; with
      `ablation_examples` > 0 also "ablation" (falls of the accuracy in the same structure) and
      "ablation_examples".  {} for networks other than DenseNet.
    """
    try:
        matrices = feature_reuse.reuse(variables)
    except ValueError:
        return {}
    found: dict[str, Any] = {"reuse": [matrix.tolist() for matrix in matrices]}
    if not ablation_examples:
        return found
    count = min(ablation_examples, len(setup.eval_source))
    score = scorer(setup, count)
    falls = feature_reuse.ablate(score, jax.device_get(variables))
    return {**found, "ablation": [m.tolist() for m in falls], "ablation_examples": count}


def scorer(setup: Experiment, count: int) -> Callable[[Any], float]:
    """Returns a compiled function that maps variables to the accuracy on `count` examples.

    The examples are evenly spaced over the evaluation split, which may be sorted by class.
    """
    chosen = np.linspace(0, len(setup.eval_source) - 1, count).round().astype(int)
    images = np.stack([shown.image(setup, int(i)) for i in chosen])
    labels = np.array([setup.eval_source.examples[int(i)]["label"] for i in chosen])
    normalize = setup.normalize

    @jax.jit
    def hits(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits: Any = setup.model.apply(variables, normalize(images))
        return (logits.argmax(-1) == labels).sum()

    def score(variables: Any) -> float:
        starts = range(0, count, ABLATION_BATCH)
        parts = [slice(start, start + ABLATION_BATCH) for start in starts]
        return sum(int(hits(variables, images[part], labels[part])) for part in parts) / count

    return score


def finite(value: Any) -> Any:
    """Returns nested lists and dicts with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
