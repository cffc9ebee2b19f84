"""Everything that a dossier measures, as one record for its page and for programs."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from densenet_jax import report as reports
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.dossier import coverage, data_card, map_check, robustness
from densenet_jax.evaluation import per_example, splits
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.label_scores import samples
from densenet_jax.report.predictions import Predictions
from densenet_jax.scores import intervals, ranking
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import bounds
from densenet_jax.training import mesh as meshes
from densenet_jax.training import settings
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.rundir import bounded_files, run_outputs, run_weights

TRAINING, CHOSEN, SCORED = "training", "chose the checkpoint", "scored here"
BOTH = f"{CHOSEN} and is {SCORED}"


def measure(
    setup: Experiment,
    variables: Any,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    *,
    step: int,
    images: int,
) -> tuple[dict[str, Any], Predictions | Estimates]:
    """Measures everything, and writes the answers into the dossier's folder.

    Args:
      setup: the experiment of the run, whose evaluation split is scored.
      variables: of the checkpoint.
      workdir: the run's directory.
      folder: of the dossier.
      step: of the checkpoint.
      images: largest number of images whose changed versions are evaluated.

    Returns:
      {"step", "task", "metric": {"key", "title", "percent"}, "data": see `data_card.describe`,
      "left_out": sentences about splits that could not be opened, "calibration": of
      calibration.json or None, "calibrated": whether it is of this checkpoint, "ranking": of
      classes, see `_one_against_rest`, "coverage": see `coverage.measure`, "robustness": see
      `robustness.measure`, "maps": see `map_check.measure`}; and the answers.  Of answers that are
      not finite, "ranking", "coverage" and "robustness" are None.
    """
    outputs = run_outputs.read(str(workdir), setup.config, step)
    variables = meshes.on_every_device(variables, setup.mesh)
    used, left_out = _splits(setup, workdir)
    with jax.set_mesh(setup.mesh):
        found = reports.examine(setup, variables, workdir, step=step, into=folder)
        answers = _probabilities(setup, variables, found, outputs, folder)
        finite = bool(np.isfinite(answers[0]).all())
        changed = robustness.measure(setup, variables, outputs, images) if finite else None
    metric, names = setup.task.measured[0], list(setup.eval_source.class_names)
    calibrated = outputs != setup.task.outputs
    groups = setup.eval_source.groups_of(found.index)
    record = {
        "step": step,
        "task": setup.task.name,
        "metric": {"key": metric.key, "title": metric.title, "percent": metric.percent},
        "data": data_card.describe(used),
        "left_out": left_out,
        "calibration": _calibration(workdir) if calibrated else None,
        "ranking": None,
        "coverage": None,
        "robustness": changed,
        "maps": map_check.measure(setup, variables),
    }
    if finite:
        kept = _kept(setup, str(workdir), step, outputs, found) if calibrated else None
        record["coverage"] = coverage.measure(setup.task.name, answers, names, groups, kept)
        if setup.task.name == "classification":
            record["ranking"] = _one_against_rest(*answers, names, groups)
    return record, found


def _splits(setup: Experiment, workdir: pathlib.Path) -> tuple[dict[str, Source], list[str]]:
    """Returns the splits of the run and the one that is scored, and why others are missing."""
    stored = run_weights.read_config(str(workdir))
    used, left_out = {}, []
    for use, load in ((TRAINING, settings.train_source), (CHOSEN, settings.eval_source)):
        try:
            used[use] = load(stored)
        except DataError as e:
            first = str(e).splitlines()[0]
            left_out.append(f"The split that was used for “{use}” cannot be opened: {first}")
    if CHOSEN in used and _same(stored, setup.config):
        used.pop(CHOSEN)
        return {**used, BOTH: setup.eval_source}, left_out
    return {**used, SCORED: setup.eval_source}, left_out


def _same(stored: ml_collections.ConfigDict, given: ml_collections.ConfigDict) -> bool:
    """Returns whether the evaluation splits of two configurations are the same."""
    apart = ("workers", "eval_crop", "interpolation", "fit", "image_size", "in_memory", "strict")
    pair = [{k: v for k, v in c.data.to_dict().items() if k not in apart} for c in (stored, given)]
    return pair[0] == pair[1]


def _probabilities(
    setup: Experiment,
    variables: Any,
    found: Predictions | Estimates,
    outputs: Outputs,
    folder: pathlib.Path,
) -> coverage.Answers:
    """Returns all probabilities or numbers of the evaluation split, and the labels.

    Those of classes are also written to evaluation.npz, because predictions.npz has five of them.
    """
    if isinstance(found, Estimates):
        return found.values, found.labels
    own = splits.answers(setup, variables, setup.eval_source)
    per_example.save(folder, splits.Assessed({}, own, setup.eval_source), outputs)
    return np.asarray(outputs(jnp.asarray(own["logits"]))), own["label"]


def _kept(
    setup: Experiment,
    workdir: str,
    step: int,
    outputs: Outputs,
    found: Predictions | Estimates,
) -> coverage.Answers | None:
    """Returns the answers that `calibrate` kept; None if they are of the split that is scored."""
    kept = per_example.load_logits(workdir, step)
    if kept is None or found.calibrated == found.data:
        return None
    return np.asarray(outputs(jnp.asarray(kept[0]))), kept[1]


def _calibration(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of calibration.json, which `run_outputs.read` has checked."""
    return bounded_files.read_json(workdir / run_outputs.FILE)


def _one_against_rest(
    p: np.ndarray, labels: np.ndarray, names: list[str], groups: list[str] | None
) -> list[dict[str, Any]]:
    """Returns AUROC and average precision of each class against all others, with intervals.

    Args:
      p: probabilities, [N, C].
      labels: classes, [N].
      names: of the classes.
      groups: of the examples.

    Returns:
      [{"name", "examples", "auroc", "auroc_interval", "average_precision",
      "average_precision_interval"}, ...]
    """
    targets = labels[:, None] == np.arange(len(names))
    scores = ranking.by_label(p, targets)
    margins = intervals.of_ranking(p, targets, groups, samples(len(names), p.size))
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"name": name, "examples": int(targets[:, i].sum())}
        for key, values in scores.items():
            row[key], row[f"{key}_interval"] = optional(values[i]), bounds(margins[key][i])
        rows.append(row)
    return rows
