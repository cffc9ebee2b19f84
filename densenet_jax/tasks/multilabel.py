"""Several labels: each may be present, absent or unknown, independently of the others."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.scores import intervals, ranking, thresholds
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.several import Several
from densenet_jax.tasks.task import LOSS, Metric, bounds

AUROC = Metric("auroc", "AUROC", percent=False)
AVERAGE_PRECISION = Metric("average_precision", "average precision", percent=False)


class Multilabel(Several):
    """Labels are float32 [B, L]: 1 present, 0 absent, NaN unknown; predictions are sigmoids.

    An unknown label has no loss and counts in no metric. The metrics are means over the labels for
    which the split has both kinds of examples.
    """

    name = "multilabel"
    default_loss = "binary_cross_entropy"
    measured = (AUROC, AVERAGE_PRECISION)
    columns = (AUROC, AVERAGE_PRECISION, LOSS)
    several = "labels"

    @property
    def outputs(self) -> Outputs:
        """A sigmoid for each label."""
        return Outputs(self.name, "sigmoid")

    def targets(self, labels: jax.Array, outputs: int) -> jax.Array:
        """Returns the labels, float32 [B, L] with NaN where one is unknown."""
        return labels.astype(jnp.float32)

    def of_each(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"auroc", "average_precision": [L]}; NaN without both kinds of examples."""
        return ranking.by_label(values, labels)

    def count(self, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns `count` of the module."""
        return count(labels, class_names)

    def assess(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        outputs: Outputs,
        groups: Sequence[str] | None,
    ) -> dict[str, Any]:
        """Returns `assess` of the module, at the thresholds of the outputs."""
        return assess(values, labels, class_names, outputs.thresholds, groups)


def count(labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns {"class", "examples" (known ones), "positives"} of each label.

    Args:
      labels: [N, L]: 1, 0 or NaN (unknown).
      class_names: in label order.
    """
    known, positives = (~np.isnan(labels)).sum(axis=0), (labels == 1).sum(axis=0)
    return [
        {"class": name, "examples": int(known[i]), "positives": int(positives[i])}
        for i, name in enumerate(class_names)
    ]


def assess(
    p: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    at: Sequence[float] = (),
    groups: Sequence[str] | None = None,
    samples: int = intervals.SAMPLES,
) -> dict[str, Any]:
    """Returns the scores of every label and their means, with 95 % intervals by bootstrap.

    Args:
      p: probabilities, float64 [N, L].
      labels: [N, L]: 1, 0 or NaN (unknown).
      class_names: in label order.
      at: the threshold of each label, [L]; (): 0.5.
      groups: the group of each example, for intervals; None: each is a group of its own.
      samples: of the bootstrap.

    Returns:
      {"auroc", "average_precision": means over the labels with both kinds of examples;
      "intervals": {"auroc", "average_precision": [low, high]}; "undefined": names of the labels
      without both kinds; "examples"; "classes": for each label {"class", "examples" (known ones),
      "positives", "auroc", "auroc_interval", "average_precision", "average_precision_interval", and
      at its threshold what `scores.thresholds.confusion` returns, "sensitivity_interval",
      "specificity_interval"}}; None for what is undefined.
    """
    at = at or (0.5,) * p.shape[1]
    found = ranking.by_label(p, labels)
    margins = intervals.of_ranking(p, labels, groups, samples)
    table = thresholds.confusion(p, labels, at)
    rates = intervals.of_rates(p, labels, at, groups, samples)
    rows = count(labels, class_names)
    record: dict[str, Any] = {"examples": len(labels), "intervals": {}, "classes": rows}
    for metric in Multilabel.measured:
        mean, undefined = ranking.mean_of_defined(found[metric.key], class_names)
        record |= {metric.key: mean, "undefined": undefined}
        record["intervals"][metric.key] = bounds(margins[f"mean_{metric.key}"])
    for i, row in enumerate(rows):
        for metric in Multilabel.measured:
            row[metric.key] = optional(found[metric.key][i])
            row[f"{metric.key}_interval"] = bounds(margins[metric.key][i])
        row |= table[i]
        for key in ("sensitivity", "specificity"):
            row[f"{key}_interval"] = bounds(rates[key][i])
    return record
