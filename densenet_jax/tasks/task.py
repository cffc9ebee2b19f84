"""What a network is trained for: targets, loss, metrics, the best metric, and its predictions.

Everything else iterates over `Task.metrics` and knows no metric by name: the steps, checkpoints,
metrics.jsonl, the progress line, sweeps, the report and the commands.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

from densenet_jax.tasks.losses import LOSSES

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


LOSS = Metric("loss", "loss", percent=False, higher_is_better=False)


class Task(abc.ABC):
    """The interface of a task.

    Class attributes:
      name: the value of `config.task`.
      default_loss: key of `losses.LOSSES`.
      measured: its metrics besides the loss, the default best one first.
      columns: what the command `evaluate` shows of a split, keys of `summary`.

    Args:
      best: key of the metric that chooses the best checkpoint; "": the first of `measured`.

    Raises:
      ValueError: the task has no metric of this key.
    """

    name: ClassVar[str]
    default_loss: ClassVar[str]
    measured: ClassVar[tuple[Metric, ...]]
    columns: ClassVar[tuple[Metric, ...]]

    def __init__(self, best: str = ""):
        known = {metric.key: metric for metric in self.metrics}
        if best and best not in known:
            raise ValueError(f"best_metric is {best!r}; it must be one of {', '.join(known)}.")
        self.best = known[best] if best else self.measured[0]

    @property
    def losses(self) -> list[str]:
        """The losses that fit the task, keys of `losses.LOSSES`."""
        return [name for name, entry in LOSSES.items() if self.name in entry.tasks]

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

    @abc.abstractmethod
    def measure(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns the metrics that are means over examples: {key: [B]}; the loss is not among them.

        Args:
          logits: [B, C].
          labels: of the same examples, as the data have them.
        """

    @abc.abstractmethod
    def answers(
        self, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns what an evaluation keeps of each example for the report, arrays [B, ...].

        Args:
          logits: [B, C].
          labels: of the same examples, as the data have them.
          mask: whether an example counts, bool [B]; it is returned under "mask".
        """

    @abc.abstractmethod
    def combine_views(self, logits: jax.Array) -> jax.Array:
        """Returns the logits of the mean probabilities of several views, [V, B, C] -> [B, C]."""

    @abc.abstractmethod
    def scores(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Returns what the command `evaluate` keeps of each example, arrays [B, ...].

        The loss is added under "loss" by the caller, who knows it.
        """

    @abc.abstractmethod
    def summary(self, scores: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
        """Returns the metrics of a whole split for evaluation.json.

        Args:
          scores: those of `scores`, and "loss" and "label", as NumPy arrays [N, ...].
          class_names: in label order.
        """
