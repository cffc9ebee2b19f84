"""Takes metrics from the device to metrics.jsonl and the progress line."""

import collections
import time
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import jax
import ml_collections
import numpy as np

from densenet_jax.tasks.task import Task
from densenet_jax.training.rundir.data_wait import DataWait
from densenet_jax.training.rundir.metrics_log import MetricsLog
from densenet_jax.training.rundir.progress import ProgressLine

# The most dispatches (one step each by default) that are queued on the device.  One runs while the
# next one waits, so the device is never idle; a longer queue would only delay a stop, which waits
# until all of it is computed, and fill the memory with batches.
MAX_PENDING = 2


class Recorder:
    """Writes the metrics of steps once the device has computed them, without making it wait.

    Attributes:
      nonfinite: number of non-finite steps in a row, up to the last step that was written.
      bad_step: the first step at which `config.nonfinite_limit` was reached; None if none has.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: ProgressLine,
        config: ml_collections.ConfigDict,
        task: Task,
        start: int,
        steps_per_epoch: float,
    ) -> None:
        """Starts to measure time.

        Args:
          log: the run's metrics.jsonl.
          progress: the run's progress line.
          config: the run's configuration.
          task: what the network is trained for.
          start: the step at which training starts or resumes.
          steps_per_epoch: may be a fraction.
        """
        self._log, self._progress, self._config, self._task = log, progress, config, task
        self._steps_per_epoch = steps_per_epoch
        earlier = log.last["seconds"] if log.last else 0.0  # the run's time before it was resumed
        self._began = time.monotonic() - earlier
        # Last step, metrics and number of steps of each dispatch on the device.
        self._pending: collections.deque[tuple[int, dict[str, Any], int]] = collections.deque()
        self._data_wait = DataWait()
        self._waited = 0.0  # seconds of waiting for data since the last record
        self.nonfinite = 0
        self.bad_step: int | None = None
        self._last = (start, time.monotonic())  # step and time from which the speed is measured
        self._arrived = time.monotonic()  # when the steps written last had arrived

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields batches, and adds up how long the device is idle because they are late."""
        return self._data_wait.timed(batches)

    def add(self, step: int, metrics: dict[str, jax.Array], count: int = 1) -> None:
        """Takes the metrics of one or more steps, and writes those that are ready.

        Args:
          step: the last of the steps.
          metrics: arrays on the device, [] or [count or more].
          count: number of steps.
        """
        self._data_wait.started(metrics["loss"])
        self._pending.append((step, metrics, count))
        # All processes of a job must notice a bad step after the same step, so several processes do
        # not look whether results are ready early.
        early = jax.process_count() == 1
        while self._pending and (
            len(self._pending) > MAX_PENDING or (early and self._pending[0][1]["loss"].is_ready())
        ):
            self._write(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for all steps on the device and writes their metrics."""
        while self._pending:
            self._write(*self._pending.popleft())

    def evaluation(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes the metrics of an evaluation; returns those that a checkpoint stores.

        Args:
          step: the evaluated step.
          metrics: as `eval_loop.evaluate` returns them.
        """
        self._record(step, "eval", metrics, time.monotonic())
        examples, nonfinite = metrics["examples"], metrics.get("nonfinite")
        if nonfinite:
            found = f"the logits of {nonfinite} of {examples} examples are not finite: no metrics"
        else:
            found = f"{self._task.describe(metrics)} on {examples} examples"
            if f"raw_{self._task.best.key}" in metrics:
                found += f"; without averages {self._task.describe(metrics, 'raw_')}"
        self._progress.note(f"step {step}: {found}")
        self._waited = 0.0
        self._arrived = time.monotonic()
        self._last = (step, self._arrived)  # evaluation does not count as training time
        return {metric.key: metrics[metric.key] for metric in self._task.metrics}

    def _write(self, last: int, metrics: dict[str, jax.Array], count: int) -> None:
        """Waits for the metrics of the `count` steps up to `last`, and writes them."""
        values = {
            name: np.reshape(value, -1)[:count].tolist()
            for name, value in jax.device_get(metrics).items()
        }
        # The steps of a dispatch arrive together; their time is divided evenly among them.
        before, self._arrived = self._arrived, time.monotonic()
        waiting = self._data_wait.take()
        for i in range(count):
            if self.bad_step is not None:
                return  # the steps after it will be repeated or discarded
            self._waited += waiting / count
            time_of_step = before + (self._arrived - before) * (i + 1) / count
            one = {name: value[i] for name, value in values.items()}
            self._write_one(last - count + 1 + i, one, time_of_step)

    def _write_one(self, step: int, metrics: dict[str, Any], now: float) -> None:
        self.nonfinite = metrics["nonfinite"]
        if self.nonfinite >= self._config.nonfinite_limit:
            self.bad_step = step
        elapsed = max(now - self._last[1], 1e-9)
        speed = (step - self._last[0]) * self._config.batch_size / elapsed
        if step % self._config.log_every == 0:
            wait = min(self._waited / elapsed, 1.0)
            record = {**metrics, "images_per_second": speed, "data_wait": wait}
            self._record(step, "train", record, now)
            self._last, self._waited = (step, now), 0.0
        self._progress.update(
            step, step / self._steps_per_epoch, {**metrics, "images_per_second": speed}
        )

    def _record(self, step: int, split: str, metrics: dict[str, Any], now: float) -> None:
        record = {"step": step, "epoch": step / self._steps_per_epoch, "split": split, **metrics}
        # JSON has neither NaN nor infinity.
        record = {k: None if v != v or v in (inf, -inf) else v for k, v in record.items()}
        if jax.process_index() == 0:
            self._log.write({**record, "seconds": now - self._began})
