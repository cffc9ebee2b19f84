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
        self, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns {"values": float32 [B, L] in the units of the labels, "labels", "mask"}."""
        values = self.outputs(logits).astype(jnp.float32)
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
          ones), "mae", "mae_interval", "rmse", "r2"}}; None for what is undefined.
        """
        outputs, labels = outputs or self.outputs, scores["label"]
        known = ~np.isnan(labels)
        record: dict[str, Any] = {"examples": len(labels)}
        rows: list[dict[str, Any]] = [
            {"class": name, "examples": int(count)}
            for name, count in zip(class_names, known.sum(axis=0), strict=True)
        ]
        if nonfinite := int((~scores["finite"]).sum()):
            keys = [metric.key for metric in self.metrics]
            return dict.fromkeys(keys) | record | {"nonfinite": nonfinite, "classes": rows}
        values = np.asarray(outputs(jnp.asarray(scores["logits"])), np.float64)
        found = regression.errors(values, labels)
        margins = intervals.of_means(abs(values - labels), groups)
        for metric in self.measured:
            mean, lacking = ranking.mean_of_defined(found[metric.key], class_names)
            record[metric.key] = mean
            if metric == MAE:
                record["undefined"] = lacking
            for i, row in enumerate(rows):
                row[metric.key] = optional(found[metric.key][i])
        for row, margin in zip(rows, margins, strict=True):
            row["mae_interval"] = bounds(margin)
        return record | {"loss": mean_of_known(scores["loss"], known), "classes": rows}
