"""Classification: each example has one label."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.scores import intervals, ranking
from densenet_jax.scores.calibration import calibration
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import LOSS, Metric, Task, bounds

TOP1, TOP5 = Metric("top1", "top-1"), Metric("top5", "top-5")
BALANCED = Metric("balanced_accuracy", "balanced accuracy")
CALIBRATION_ERROR = Metric("ece", "calibration error", higher_is_better=False)


def hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Returns for every example whether its label is among the k highest logits, bool [B].

    The rank of a label is the number of greater logits plus the number of equal logits before it,
    so a network whose logits are all equal scores as a constant answer does.  An example with any
    NaN among its logits is a miss, whatever k is: a broken network must not look perfect.

    Args:
      logits: [B, C].
      labels: integers [B].
      k: number of highest logits that count.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = jnp.arange(logits.shape[1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
    return (rank < k) & ~jnp.isnan(logits).any(axis=1)


class Classification(Task):
    """Labels are integers [B]; predictions are the softmax of the logits.

    With binary cross entropy, each class has its own loss, and predictions are sigmoids.
    """

    name = "classification"
    default_loss = "cross_entropy"
    measured = (TOP1, TOP5)
    columns = (TOP1, TOP5, BALANCED, LOSS, CALIBRATION_ERROR)
    several = "classes"

    @property
    def outputs(self) -> Outputs:
        """Softmax, or a sigmoid for each class if each had its own loss."""
        separate = self.loss == "binary_cross_entropy"
        return Outputs(self.name, "sigmoid" if separate else "softmax")

    def targets(self, labels: jax.Array, outputs: int) -> jax.Array:
        """Returns the labels one-hot, float32 [B, outputs]."""
        return jax.nn.one_hot(labels, outputs)

    def measure(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns {"top1", "top5"}: whether the label is among the highest logits, bool [B]."""
        return {"top1": hits(logits, labels, 1), "top5": hits(logits, labels, 5)}

    def answers(
        self,
        logits: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        outputs: Outputs | None = None,
    ) -> dict[str, jax.Array]:
        """Returns the (at most five) likeliest classes of each example and their probabilities.

        Returns:
          {"classes": [B, k], "probabilities": float32 [B, k], "own": the probability of the label,
          float32 [B], "labels": [B], "mask": [B]}.
        """
        chances = (outputs or self.outputs)(logits).astype(jnp.float32)
        probabilities, classes = jax.lax.top_k(chances, min(5, chances.shape[1]))
        own = jnp.take_along_axis(chances, labels[:, None], axis=1)[:, 0]
        found = {"classes": classes, "probabilities": probabilities, "own": own}
        return {**found, "labels": labels, "mask": mask}

    def scores(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns for each example its likeliest class and the metrics.

        Returns:
          {"predicted": int [B], "finite": whether all logits are finite, bool [B], "top1", "top5":
          bool [B]}.
        """
        return {
            "predicted": jnp.argmax(logits, axis=1),
            "finite": jnp.isfinite(logits).all(axis=1),
            **self.measure(logits, labels),
        }

    def summary(
        self,
        scores: dict[str, np.ndarray],
        class_names: Sequence[str],
        outputs: Outputs | None = None,
        groups: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Returns the metrics of a split, those of each class, and how calibrated it is.

        Returns:
          {"top1", "top5", "balanced_accuracy": mean of the recalls of the classes with examples,
          "f1": mean of their F1, "auroc": mean over the classes, each against the rest, "loss",
          "ece", "intervals": {"top1", "top5": [low, high]} (95 %, by bootstrap), "examples",
          "bins": see `calibration.calibration`, "classes": [{"class", "examples", "top1", "top5",
          "recall", "precision", "f1", "auroc", "average_precision"}]}; None for a class without
          examples.  If any logits are not finite, "nonfinite" says of how many examples, and every
          metric is None.
        """
        from sklearn.metrics import precision_recall_fscore_support  # takes half a second

        label, numbers = scores["label"], range(len(class_names))
        nonfinite = int((~scores["finite"]).sum())
        p = np.asarray((outputs or self.outputs)(jnp.asarray(scores["logits"])))
        bins, error = calibration(p.max(axis=1), scores["top1"])
        counts = np.bincount(label, minlength=len(class_names))
        by_class = {
            metric.key: np.bincount(label, scores[metric.key], len(class_names))
            / np.maximum(counts, 1)
            for metric in self.measured
        }
        found = precision_recall_fscore_support(
            label, scores["predicted"], labels=numbers, zero_division=0
        )
        by_class |= dict(zip(("precision", "recall", "f1"), found[:3], strict=True))
        mean = None
        if not nonfinite:
            one_against_rest = [ranking.by_label(p[:, i], label == i) for i in numbers]
            for key in ("auroc", "average_precision"):
                by_class[key] = np.concatenate([row[key] for row in one_against_rest])
            mean, _ = ranking.mean_of_defined(by_class["auroc"], class_names)
        margins = {
            metric.key: bounds(intervals.of_means(scores[metric.key], groups)[0])
            for metric in self.measured
        }
        metrics: dict[str, Any] = {
            **{metric.key: float(scores[metric.key].mean()) for metric in self.measured},
            BALANCED.key: float(by_class["recall"][counts > 0].mean()),
            "f1": float(by_class["f1"][counts > 0].mean()),
            "auroc": mean,
            "loss": float(scores["loss"].mean(dtype=np.float64)),
            CALIBRATION_ERROR.key: error,
        }
        if nonfinite:
            metrics = dict.fromkeys(metrics) | {"nonfinite": nonfinite}
        else:
            metrics["intervals"] = margins
        return {
            **metrics,
            "examples": len(label),
            "bins": bins,
            "classes": [
                {
                    "class": name,
                    "examples": int(counts[i]),
                    **{
                        key: optional(values[i]) if counts[i] and not nonfinite else None
                        for key, values in by_class.items()
                    },
                }
                for i, name in enumerate(class_names)
            ],
        }

    def accepted(
        self, scores: dict[str, np.ndarray], accepted: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Returns the accuracy where several labels, or none, are right (ReaL; Beyer et al., 2020).

        Args:
          scores: as of `summary`.
          accepted: for each example the labels that are right; examples without any do not count.

        Returns:
          {"real_top1": None if no example counts, "real_examples": how many count}.
        """
        pairs = zip(scores["predicted"], accepted, strict=True)
        right = [predicted in labels for predicted, labels in pairs if len(labels)]
        return {"real_top1": float(np.mean(right)) if right else None, "real_examples": len(right)}
