"""Calibration of a run's probabilities and the choice of its thresholds, on a split."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from densenet_jax.evaluation.scores import Scores
from densenet_jax.scores import scaling, thresholds
from densenet_jax.scores.labels import ScoresError
from densenet_jax.tasks.task import Task

DEFAULT_RULE = "youden"


def fit(
    task: Task, found: Scores, names: Sequence[str], *, rule: str | None, data: str, step: int
) -> dict[str, Any]:
    """Returns the record of calibration.json: how to scale the probabilities of a checkpoint.

    Args:
      task: what the network is trained for.
      found: the scores of every example, see `scores.collect`.
      names: of the classes or labels, in label order.
      rule: for the thresholds of several labels, see `scores.thresholds.choose`; None: "youden".
      data: name of data set and split, for the record.
      step: of the checkpoint.

    Returns:
      {"step", "data", "labels": `names`, "scale", "shift", "thresholds": see `Outputs`; "examples":
      number of examples; "before", "after": {"loss", "ece"} of the split, lists for several labels;
      "rule", "reached": of several labels, see `thresholds.confusion`; "uncalibrated": names of
      the labels without examples of both kinds, which keep their probabilities and threshold 0.5}.

    Raises:
      ScoresError: the task has no probabilities, no thresholds, or a logit is not finite.
    """
    if task.name == "regression":
        raise ScoresError("calibrate scales probabilities, and a regression has none.")
    if rule is not None and task.name != "multilabel":
        raise ScoresError(
            "--thresholds is for several labels; a classification answers with its likeliest class."
        )
    logits, labels = np.asarray(found["logits"], np.float64), found["label"]
    record: dict[str, Any] = {"step": step, "data": data, "labels": list(names)}
    record |= {"examples": len(logits), "thresholds": []}
    if task.outputs.activation == "softmax":
        fitted = scaling.of_classes(logits, labels)
        reliability: Any = scaling.reliability_of_classes
    else:
        if labels.ndim == 1:  # a classification with a loss for each class
            labels = np.eye(logits.shape[1])[labels]
        fitted = scaling.of_labels(logits, labels)
        reliability = scaling.reliability_of_labels
    record |= {"scale": np.atleast_1d(fitted.scale).tolist(), "shift": []}
    for key, values in (("before", logits), ("after", fitted(logits))):
        measured = reliability(values, labels)
        record[key] = {name: np.asarray(value).tolist() for name, value in measured.items()}
    unfitted = ~np.atleast_1d(fitted.fitted)
    record["uncalibrated"] = [name for name, bad in zip(names, unfitted, strict=False) if bad]
    if task.name == "multilabel":
        p = np.asarray(task.outputs(jnp.asarray(fitted(logits))), np.float64)
        rule = rule or DEFAULT_RULE
        at = thresholds.choose(p, labels, rule)
        record |= {"rule": rule, "reached": thresholds.confusion(p, labels, at)}
        record["thresholds"] = [0.5 if t is None else t for t in at]
    return record
