"""Early stopping: ends a run whose evaluations no longer improve."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from densenet_jax.tasks.task import Metric


class EarlyStopping:
    """Counts the evaluations since the best one.

    It counts the records of metrics.jsonl, so a resumed run ends where an uninterrupted one does.

    Attributes:
      over: whether the run should end.
    """

    def __init__(self, limit: int, metric: Metric):
        """Starts a count.

        Args:
          limit: the number of evaluations without a better one that ends the run; 0: never.
          metric: says which evaluation is better.
        """
        self._limit, self._metric = limit, metric
        self._best, self._since = -math.inf, 0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Counts an evaluation; an equal metric is not a better one."""
        score = self._metric.score(metrics)
        better = score > self._best
        self._best, self._since = (score, 0) if better else (self._best, self._since + 1)

    def recount(self, evaluations: Iterable[Mapping[str, Any]]) -> None:
        """Starts again from the evaluations of a run, in order."""
        self._best, self._since = -math.inf, 0
        for metrics in evaluations:
            self.add(metrics)
        if jax.process_count() > 1:  # file systems may show processes different versions
            known = np.array([self._best, self._since])
            best, since = multihost_utils.broadcast_one_to_all(known)
            self._best, self._since = float(best), int(since)

    @property
    def over(self) -> bool:
        """Whether the run should end."""
        return 0 < self._limit <= self._since

    def __str__(self) -> str:
        evaluations = "evaluation" if self._since == 1 else "evaluations"
        return f"{self._since} {evaluations} without a better {self._metric.title} (early_stopping)"
