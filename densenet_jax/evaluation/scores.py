"""What a model makes of every example of a split, and the numbers that sum it up."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.tasks import classification


@dataclasses.dataclass(frozen=True)
class Scores:
    """One entry for each of the N examples that were evaluated.

    Attributes:
      index: the examples' numbers in the split, int [N].
      label: int [N].
      predicted: the likeliest class, int [N].
      confidence: its probability, float32 [N].
      loss: cross entropy, float32 [N].
      top1, top5: whether the label is the likeliest class, or among the five likeliest, bool [N].
    """

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    top1: np.ndarray
    top5: np.ndarray


def collect(
    predict: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    batches: Iterable[dict[str, jax.Array]],
) -> Scores:
    """Returns the scores of all examples of `batches` whose mask is True, each exactly once.

    Args:
      predict: maps (variables, images) to logits [B, classes], see `views.predictor`.
      batches: as `data.pipeline.eval_batches` makes them, from the first example on.
    """

    @jax.jit
    def score(variables, batch):
        logits, label = predict(variables, batch["image"]), batch["label"]
        return {
            "mask": batch["mask"],
            "label": label,
            "predicted": jnp.argmax(logits, axis=1),
            "confidence": jax.nn.softmax(logits).max(axis=1).astype(jnp.float32),
            "loss": classification.cross_entropy(logits, label).astype(jnp.float32),
            "top1": classification.hits(logits, label, 1),
            "top5": classification.hits(logits, label, 5),
        }

    # Results stay on the device until the end: the loop never waits for them.
    results = [score(variables, batch) for batch in batches]
    parts = [_on_host(result) for result in results]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mask = merged.pop("mask")
    return Scores(np.flatnonzero(mask), **{name: value[mask] for name, value in merged.items()})


def _on_host(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return jax.device_get(result)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(result, tiled=True)


def summary(scores: Scores, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the numbers of a split, ready for JSON; accuracies are fractions.

    Returns:
      {"top1", "top5", "loss", "ece", "examples", "bins": see `calibration`,
       "classes": [{"class", "examples", "top1", "top5"}]}; None where no example tells.
    """
    bins, error = calibration(scores.confidence, scores.top1)
    counts = np.bincount(scores.label, minlength=len(class_names))
    hits = [np.bincount(scores.label, h, len(class_names)) for h in (scores.top1, scores.top5)]
    return {
        "top1": float(scores.top1.mean()),
        "top5": float(scores.top5.mean()),
        "loss": float(scores.loss.mean(dtype=np.float64)),
        "ece": error,
        "examples": len(scores.label),
        "bins": bins,
        "classes": [
            {
                "class": name,
                "examples": int(count),
                "top1": first / count if count else None,
                "top5": fifth / count if count else None,
            }
            for name, count, first, fifth in zip(class_names, counts, *hits, strict=True)
        ],
    }


def accepted_top1(scores: Scores, accepted: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns the accuracy where several labels, or none, are right (ReaL; Beyer et al., 2020).

    Args:
      accepted: for every example of the split the labels that are right; an example without any
        does not count.
    """
    sets = [accepted[i] for i in scores.index]
    right = [p in labels for p, labels in zip(scores.predicted, sets, strict=True) if len(labels)]
    return {"real_top1": float(np.mean(right)) if right else None, "real_examples": len(right)}


def calibration(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> tuple[list[dict[str, Any]], float]:
    """Returns the bins that are not empty, and the expected calibration error (Guo et al., 2017).

    Args:
      confidence: probability of the predicted class, [N].
      correct: bool [N].

    Returns:
      a list of {"low", "high", "count", "confidence", "accuracy"}, and the mean distance between
      confidence and accuracy, weighted by the number of examples.
    """
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    rows, error = [], 0.0
    for i in range(bins):
        inside = which == i
        if not inside.any():
            continue
        mean, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
        rows.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "count": int(inside.sum()),
                "confidence": mean,
                "accuracy": accuracy,
            }
        )
        error += inside.mean() * abs(mean - accuracy)
    return rows, float(error)
