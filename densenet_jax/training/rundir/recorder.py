"""Metrics on their way from the device to metrics.jsonl and the progress line."""

import collections
import time
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import jax
import numpy as np

from densenet_jax.tasks.task import Task
from densenet_jax.training.rundir.data_wait import DataWait

# Steps that may be under way (and two dispatches): more would only pile up batches on the device.
MAX_PENDING = 16


class Recorder:
    """Writes steps' metrics once the device has computed them, without making it wait."""

    def __init__(self, log, progress, config, task: Task, start: int, steps_per_epoch: float):
        self._log, self._progress, self._config, self._task = log, progress, config, task
        self._steps_per_epoch = steps_per_epoch
        earlier = log.last["seconds"] if log.last else 0.0  # of this run, before it was resumed
        self._began = time.monotonic() - earlier
        self._pending = collections.deque()
        self._most_pending = max(2, MAX_PENDING // config.steps_per_dispatch)
        self._data_wait = DataWait()
        self._waited = 0.0  # seconds for data since the last record
        self.nonfinite = 0  # bad steps in a row up to the last one written
        self.bad_step: int | None = None  # the first with too many bad ones in a row up to it
        self._last = (start, time.monotonic())  # step and time that the speed counts from
        self._arrived = time.monotonic()  # when the last steps written were known to be done

    def timed(self, batches: Iterable) -> Iterator:
        """Iterates over batches, and adds up how long steps lack them."""
        return self._data_wait.timed(batches)

    def add(self, step: int, metrics: dict[str, jax.Array], count: int = 1) -> None:
        """Takes the metrics of the last `count` steps up to `step`, [count or more] or single."""
        self._data_wait.started(metrics["loss"])
        self._pending.append((step, metrics, count))
        # Processes of one job must learn of a bad step after the same one: none may be quicker.
        early = jax.process_count() == 1
        while self._pending and (
            len(self._pending) > self._most_pending
            or (early and self._pending[0][1]["loss"].is_ready())
        ):
            self._write(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for all steps under way and writes them."""
        while self._pending:
            self._write(*self._pending.popleft())

    def evaluation(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes the metrics of an evaluation; returns them as a checkpoint keeps them."""
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
        self._last = (step, self._arrived)  # the evaluation's time is not training time
        return {metric.key: metrics[metric.key] for metric in self._task.metrics}

    def _write(self, last: int, metrics: dict[str, jax.Array], count: int) -> None:
        values = {
            name: np.reshape(value, -1)[:count].tolist()
            for name, value in jax.device_get(metrics).items()
        }
        # Steps of one dispatch arrive together: their time is shared out evenly.
        before, self._arrived = self._arrived, time.monotonic()
        waiting = self._data_wait.take()
        for i in range(count):
            if self.bad_step is not None:
                return  # what follows is given up
            self._waited += waiting / count
            time_of_step = before + (self._arrived - before) * (i + 1) / count
            one = {name: value[i] for name, value in values.items()}
            self._write_one(last - count + 1 + i, one, time_of_step)

    def _write_one(self, step: int, metrics: dict[str, float], now: float) -> None:
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
        # JSON knows neither NaN nor infinity.
        record = {k: None if v != v or v in (inf, -inf) else v for k, v in record.items()}
        if jax.process_index() == 0:
            self._log.write({**record, "seconds": now - self._began})
