"""Code shared by tasks with several outputs, whose labels or numbers may be unknown."""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.scores import ranking
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import Task


class Several(Task):
    """Labels are float32 [B, L] with NaN where one is unknown, which counts in no metric.

    A metric of a split is the mean over the outputs for which it is defined.
    """

    @abc.abstractmethod
    def of_each(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the metrics of every output, {key: [L]} with NaN where one is undefined.

        Args:
          values: probabilities or numbers, [N, L].
          labels: [N, L], NaN where one is unknown.
        """

    @abc.abstractmethod
    def count(self, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the rows of the outputs with what is known without a network.

        Args:
          labels: [N, L], NaN where one is unknown.
          class_names: in label order.
        """

    @abc.abstractmethod
    def assess(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        outputs: Outputs,
        groups: Sequence[str] | None,
    ) -> dict[str, Any]:
        """Returns what `summary` does, but for the loss.

        Args:
          values: probabilities or numbers, float64 [N, L].
          labels: [N, L], NaN where one is unknown.
          class_names: in label order.
          outputs: what the logits mean, with calibration and thresholds.
          groups: the group of each example, for intervals; None: each is a group of its own.
        """

    def answers(
        self,
        logits: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        outputs: Outputs | None = None,
    ) -> dict[str, jax.Array]:
        """Returns {"probabilities" or "values": float32 [B, L], "labels": [B, L], "mask": [B]}."""
        values = (outputs or self.outputs)(logits).astype(jnp.float32)
        return {self.outputs.noun: values, "labels": labels, "mask": mask}

    def of_split(self, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the mean of each metric over the outputs; NaN if it is defined for none."""
        found = self.of_each(answers[self.outputs.noun], answers["labels"])
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
        """Returns the metrics of a split and of every output, with 95 % intervals by bootstrap.

        Returns:
          what `assess` does, and "loss"; None for what is undefined.
        """
        outputs, labels = outputs or self.outputs, scores["label"]
        if nonfinite := int((~scores["finite"]).sum()):
            rows = self.count(labels, class_names)
            record = {"examples": len(labels), "nonfinite": nonfinite, "classes": rows}
            return dict.fromkeys(metric.key for metric in self.metrics) | record
        values = np.asarray(outputs(jnp.asarray(scores["logits"])), np.float64)
        found = self.assess(values, labels, class_names, outputs, groups)
        return found | {"loss": mean_of_known(scores["loss"], ~np.isnan(labels))}


def mean_of_known(losses: np.ndarray, known: np.ndarray) -> float | None:
    """Returns the mean of losses [N], in which each known label [N, L] counts once."""
    weights = known.sum(axis=1)
    return float(np.average(losses, weights=weights)) if weights.any() else None
