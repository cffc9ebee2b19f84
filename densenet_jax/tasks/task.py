"""The interface of a task: targets, loss, metrics, the best metric, and predictions.

All other code iterates over `Task.metrics` and names no metric: the steps, checkpoints,
metrics.jsonl, the progress line, sweeps, the report and the commands.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.tasks.losses import LOSSES
from densenet_jax.tasks.outputs import Outputs

Metrics = dict[str, Any]


class Metric(NamedTuple):
    """One number that says how good a network is.

    Attributes:
      key: its name in metrics.jsonl and evaluation.json.
      title: its name for people.
      percent: whether it is a share from 0 to 1, shown in percent.
      higher_is_better: the direction of improvement.
    """

    key: str
    title: str
    percent: bool = True
    higher_is_better: bool = True

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """Returns the metric; None if it is missing or not finite."""
        value = metrics.get(self.key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Returns a number that is larger for better metrics; minus infinity if there is none."""
        value = self.value(metrics)
        if value is None:
            return -math.inf
        return value if self.higher_is_better else -value

    def show(self, metrics: Mapping[str, Any], digits: int | None = None) -> str:
        """Returns the metric as text, "97.22%" or "0.1234"; "-" if there is none.

        Args:
          metrics: by key.
          digits: number of digits after the point; None: 2 for percentages, 4 for others.
        """
        value = self.value(metrics)
        if value is None:
            return "-"
        if self.percent:
            return f"{value:.{2 if digits is None else digits}%}"
        return f"{value:.{4 if digits is None else digits}f}"


def bounds(interval: Mapping[str, Any]) -> list[float] | None:
    """Returns an interval of `scores.intervals` as [low, high]; None if it is undefined."""
    low, high = interval["low"], interval["high"]
    return None if low is None or high is None else [low, high]


LOSS = Metric("loss", "loss", percent=False, higher_is_better=False)


class Task(abc.ABC):
    """The interface of a task.

    Class attributes:
      name: the value of `config.task`.
      default_loss: key of `losses.LOSSES`.
      measured: its metrics besides the loss, the default best one first.
      columns: what the command `evaluate` shows of a split, keys of `summary`.
      several: what the outputs are called: "classes", "labels" or "numbers".

    Attributes:
      best: the metric that chooses the best checkpoint.
      loss: key of `losses.LOSSES`.
      mean, std: of the targets of the training split, one value for each output; of regression.

    Raises:
      ValueError: the task has no metric of this key, or the loss does not fit it.
    """

    name: ClassVar[str]
    default_loss: ClassVar[str]
    measured: ClassVar[tuple[Metric, ...]]
    columns: ClassVar[tuple[Metric, ...]]
    several: ClassVar[str]

    def __init__(
        self, best: str = "", loss: str = "", mean: Sequence[float] = (), std: Sequence[float] = ()
    ):
        """Makes a task.

        Args:
          best: key of the metric that chooses the best checkpoint; "": the first of `measured`.
          loss: key of `losses.LOSSES`; "": `default_loss`.
          mean, std: of the targets of the training split, one value for each output; of
            regression.
        """
        self.loss = loss or self.default_loss
        if self.loss not in self.losses:
            raise ValueError(
                f"loss is {loss!r}, which does not fit the task {self.name}; it must be one of "
                f"{', '.join(self.losses)}."
            )
        self.mean, self.std = tuple(mean), tuple(std)
        known = {metric.key: metric for metric in self.metrics}
        if best and best not in known:
            raise ValueError(f"best_metric is {best!r}; it must be one of {', '.join(known)}.")
        self.best = known[best] if best else self.measured[0]

    @property
    def losses(self) -> list[str]:
        """The losses that fit the task, keys of `losses.LOSSES`."""
        return [name for name, functions in LOSSES.items() if self.name in functions]

    @property
    @abc.abstractmethod
    def outputs(self) -> Outputs:
        """How the network's outputs become answers."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of an evaluation, in the order in which they are shown."""
        return (*self.measured, LOSS)

    def describe(self, metrics: Mapping[str, Any], prefix: str = "") -> str:
        """Returns the metrics in a sentence: "top-1 97.22%, top-5 99.90%, loss 0.1234".

        Args:
          metrics: by key.
          prefix: of the keys: "raw_" for those of the variables without moving averages.
        """
        own = {key.removeprefix(prefix): v for key, v in metrics.items() if key.startswith(prefix)}
        return ", ".join(f"{metric.title} {metric.show(own)}" for metric in self.metrics)

    def short(self, metrics: Mapping[str, Any]) -> str:
        """Returns a training step's metrics for the progress line: "loss 0.123  top-1 97.2%"."""
        first = next((metric for metric in self.measured if metric.key in metrics), LOSS)
        shown = dict.fromkeys((LOSS, first))  # once each, in this order
        return "  ".join(f"{m.title} {m.show(metrics, 1 if m.percent else 3)}" for m in shown)

    @abc.abstractmethod
    def targets(self, labels: jax.Array, outputs: int) -> jax.Array:
        """Returns what the loss compares the logits with, float32 [B, outputs].

        Args:
          labels: of a batch, as the data have them.
          outputs: number of the network's outputs.
        """

    def measure(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns the metrics that are means over examples: {key: [B]}; the loss is not among them.

        Args:
          logits: [B, C].
          labels: of the same examples, as the data have them.
        """
        return {}

    def of_split(self, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the metrics that need a whole split at once, such as the AUROC; {key: value}.

        Args:
          answers: those of `answers`, without "mask", of all examples that count, [N, ...].
        """
        return {}

    @abc.abstractmethod
    def answers(
        self,
        logits: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        outputs: Outputs | None = None,
    ) -> dict[str, jax.Array]:
        """Returns what an evaluation keeps of each example for the report, arrays [B, ...].

        Args:
          logits: [B, C].
          labels: of the same examples, as the data have them.
          mask: whether an example counts, bool [B]; it is returned under "mask".
          outputs: what the logits mean, with calibration; None: without it.
        """

    def combine_views(self, logits: jax.Array) -> jax.Array:
        """Returns the logits of the mean probabilities of several views, [V, B, C] -> [B, C]."""
        activation = self.outputs.activation
        if activation == "identity":
            return logits.mean(axis=0)
        count = jnp.log(len(logits))
        if activation == "softmax":
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - count
        present = jax.nn.logsumexp(jax.nn.log_sigmoid(logits), axis=0)
        return present - jax.nn.logsumexp(jax.nn.log_sigmoid(-logits), axis=0)

    @abc.abstractmethod
    def scores(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns what `summary` needs of each example besides its logits, arrays [B, ...].

        "finite" says whether its logits are finite. The caller adds "logits" and "loss".
        """

    @abc.abstractmethod
    def summary(
        self,
        scores: dict[str, np.ndarray],
        class_names: Sequence[str],
        outputs: Outputs | None = None,
        groups: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Returns the metrics of a whole split for evaluation.json.

        If any logits are not finite, "nonfinite" says of how many examples, and there are no
        metrics.

        Args:
          scores: those of `scores`, and "logits", "loss" and "label", as NumPy arrays [N, ...].
          class_names: in label order.
          outputs: what the logits mean, with calibration and thresholds; None: without them.
          groups: the group of each example, for intervals; None: each is a group of its own.
        """
