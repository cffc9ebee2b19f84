"""The time during which the device was idle because the next batch was not ready.

The device works through a queue of steps.  While it is busy, it costs nothing if the loop waits for
the next batch; the loop often waits because the device is busy, when the computation that gathers a
batch on the device is queued behind the steps.  So waiting counts only from the moment when the
device has finished all steps that it was given.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

import jax

POLL = 0.001  # seconds between two checks whether a step has finished


class DataWait:
    """Adds up the time in which the loop waited for a batch while no step was running."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with no time waited.

        Args:
          clock: returns the time in seconds.
        """
        self._clock = clock
        self._started = 0  # number of steps given to the device
        self._finished = (0, -inf)  # number of finished steps, and when the last one finished
        self._under_way: queue.SimpleQueue[Any] = queue.SimpleQueue()  # arrays, then None
        self._seconds = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields batches and measures the waiting; the loop must call `started` for each batch."""
        iterator, end = iter(batches), object()
        threading.Thread(target=self._watch, name="steps under way", daemon=True).start()
        try:
            while True:
                asked = self._clock()
                batch = next(iterator, end)
                had = self._clock()
                count, since = self._finished
                if count == self._started:
                    self._seconds += max(0.0, had - max(asked, since))
                if batch is end:
                    return
                yield batch
        finally:
            self._under_way.put(None)

    def started(self, result: jax.Array) -> None:
        """Registers a step, which is running until `result`, one of its outputs, is ready."""
        self._started += 1
        self._under_way.put(result)

    def take(self) -> float:
        """Returns the seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def finished(self) -> int:
        """Number of steps that are known to have finished."""
        return self._finished[0]

    def _watch(self) -> None:
        """Notes when each step finishes; runs in a thread until None is put into the queue."""
        while (result := self._under_way.get()) is not None:
            # Polls instead of blocking: a thread that is inside the runtime when the interpreter
            # ends crashes the process.
            with contextlib.suppress(Exception):  # a failed step raises where its result is used
                while not result.is_ready():
                    time.sleep(POLL)
            self._finished = (self._finished[0] + 1, self._clock())
