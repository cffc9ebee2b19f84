"""How long a step could have run, but had no data.

The device works through steps that were handed to it earlier.  A loop that waits for the next batch
meanwhile costs nothing, and often it waits because they are under way: what gathers a batch on the
device queues behind them.  So time counts from when the device has finished all that it was given.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

import jax

POLL = 0.001  # seconds


class DataWait:
    """Adds up the time for which no step was under way and the loop waited for the next batch."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Args: clock, which returns seconds."""
        self._clock = clock
        self._started = 0
        self._finished = (0, -inf)  # how many of them are, and when the last was
        self._under_way = queue.SimpleQueue()
        self._seconds = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Iterates over batches, and measures; `started` says what became of each."""
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
        """Takes something that a step computes: it is under way until this is there."""
        self._started += 1
        self._under_way.put(result)

    def take(self) -> float:
        """Returns the seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def finished(self) -> int:
        """How many steps are known to have finished."""
        return self._finished[0]

    def _watch(self) -> None:
        while (result := self._under_way.get()) is not None:
            # Asked now and then, not waited for: a thread that is in the runtime when the
            # interpreter ends takes the process down with it.
            with contextlib.suppress(Exception):  # a step that failed says so where it is used
                while not result.is_ready():
                    time.sleep(POLL)
            self._finished = (self._finished[0] + 1, self._clock())
