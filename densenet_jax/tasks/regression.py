"""Regression: one or several numbers for each example, such as an age."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.scores import intervals, ranking, regression
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.several import Several
from densenet_jax.tasks.task import LOSS, Metric, bounds

MAE = Metric("mae", "mean absolute error", percent=False, higher_is_better=False)
RMSE = Metric("rmse", "root mean squared error", percent=False, higher_is_better=False)
R2 = Metric("r2", "R²", percent=False)


class Regression(Several):
    """Labels are float32 [B, L], NaN where a number is unknown.

    The network learns standardised targets, (label - mean) / std with the mean and standard
    deviation of the training split, and `outputs` undoes it: metrics and predictions are in the
    units of the labels. A metric of several numbers is the mean of those of each.
    """

    name = "regression"
    default_loss = "huber"
    measured = (MAE, RMSE, R2)
    columns = (MAE, RMSE, R2, LOSS)
    several = "numbers"

    @property
    def outputs(self) -> Outputs:
        """The network's outputs in the units of the labels."""
        return Outputs(self.name, "identity", self.std, self.mean)

    def targets(self, labels: jax.Array, outputs: int) -> jax.Array:
        """Returns the standardised labels, float32 [B, L] with NaN where one is unknown."""
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.mean or 0, self.std or 1))
        return (labels.astype(jnp.float32) - mean) / std

    def of_each(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"mae", "rmse", "r2": [L]}."""
        return regression.errors(values, labels)

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
        """Returns `assess` of the module."""
        return assess(values, labels, class_names, groups)


def count(labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns {"class", "examples" (known ones)} of each number.

    Args:
      labels: [N, L], NaN where one is unknown.
      class_names: of the numbers.
    """
    known = (~np.isnan(labels)).sum(axis=0)
    return [{"class": name, "examples": int(n)} for name, n in zip(class_names, known, strict=True)]


def assess(
    values: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    groups: Sequence[str] | None = None,
    samples: int = intervals.SAMPLES,
) -> dict[str, Any]:
    """Returns the errors of every number and their means, with 95 % intervals by bootstrap.

    Args:
      values: predicted numbers, float64 [N, L].
      labels: [N, L], NaN where one is unknown.
      class_names: of the numbers.
      groups: the group of each example, for intervals; None: each is a group of its own.
      samples: of the bootstrap.

    Returns:
      {"mae", "rmse", "r2": means over the numbers; "undefined": names of the numbers that are never
      known; "examples"; "classes": for each number {"class", "examples" (known ones), "mae",
      "mae_interval", "rmse", "rmse_interval", "r2", "r2_interval"}}; None for what is undefined.
    """
    found = regression.errors(values, labels)

    def score(weights: np.ndarray) -> np.ndarray:
        return np.concatenate(list(regression.errors(values, labels, weights).values()))

    drawn = intervals.bootstrap(score, len(values), groups, samples).reshape(
        samples, -1, len(class_names)
    )
    rows = count(labels, class_names)
    record: dict[str, Any] = {"examples": len(labels), "classes": rows}
    for k, (key, each) in enumerate(found.items()):
        record[key], lacking = ranking.mean_of_defined(each, class_names)
        if key == MAE.key:
            record["undefined"] = lacking
        for i, row in enumerate(rows):
            row[key] = optional(each[i])
            row[f"{key}_interval"] = bounds(intervals.interval(drawn[:, k, i]))
    return record
