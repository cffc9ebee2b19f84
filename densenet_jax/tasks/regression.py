"""Regression: one or several numbers for each example, such as an age."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.scores import intervals, ranking, regression
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.multilabel import mean_of_known
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import LOSS, Metric, Task, bounds

MAE = Metric("mae", "mean absolute error", percent=False, higher_is_better=False)
RMSE = Metric("rmse", "root mean squared error", percent=False, higher_is_better=False)
R2 = Metric("r2", "R²", percent=False)


class Regression(Task):
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
        mean, std = (jnp.asarray(x or default, jnp.float32) for x, default in self._unit)
        return (labels.astype(jnp.float32) - mean) / std

    @property
    def _unit(self) -> tuple[tuple[Any, float], ...]:
        return (self.mean, 0.0), (self.std, 1.0)

    def answers(
        self,
        logits: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        outputs: Outputs | None = None,
    ) -> dict[str, jax.Array]:
        """Returns {"values": float32 [B, L] in the units of the labels, "labels", "mask"}."""
        values = (outputs or self.outputs)(logits).astype(jnp.float32)
        return {"values": values, "labels": labels, "mask": mask}

    def of_split(self, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns {"mae", "rmse", "r2"}, means over the numbers."""
        found = regression.errors(answers["values"], answers["labels"])
        means = {key: ranking.mean_of_defined(v, [""] * v.size)[0] for key, v in found.items()}
        return {key: float("nan") if mean is None else mean for key, mean in means.items()}

    def scores(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns {"finite": bool [B]}."""
        return {"finite": jnp.isfinite(logits).all(axis=1)}

    def summary(
        self,
        scores: dict[str, np.ndarray],
        class_names: Sequence[str],
        outputs: Outputs | None = None,
        groups: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Returns the errors of a split and of every number, with 95 % intervals by bootstrap.

        Returns:
          {"mae", "rmse", "r2": means over the numbers; "loss"; "undefined": names of the numbers
          that are never known; "examples"; "classes": for each number {"class", "examples" (known
          ones), "mae", "mae_interval", "rmse", "rmse_interval", "r2", "r2_interval"}}; None for
          what is undefined.
        """
        outputs, labels = outputs or self.outputs, scores["label"]
        if nonfinite := int((~scores["finite"]).sum()):
            keys = [metric.key for metric in self.metrics]
            rows = count(labels, class_names)
            record = {"examples": len(labels), "nonfinite": nonfinite, "classes": rows}
            return dict.fromkeys(keys) | record
        values = np.asarray(outputs(jnp.asarray(scores["logits"])), np.float64)
        found = assess(values, labels, class_names, groups)
        return found | {"loss": mean_of_known(scores["loss"], ~np.isnan(labels))}


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
    """Returns the scores of `Regression.summary` but for the loss.

    Args:
      values: predicted numbers, float64 [N, L].
      labels: [N, L], NaN where one is unknown.
      class_names: of the numbers.
      groups: the group of each example, for intervals; None: each is a group of its own.
      samples: of the bootstrap.
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
