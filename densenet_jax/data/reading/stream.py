"""An iterator over batches that ends cleanly: its threads, worker processes and shared memory."""

import atexit
import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

from densenet_jax.data.sources.source import DataError

Batch = dict[str, Any]


class Stream(Iterator[Batch]):
    """An iterator over batches that can be closed, which ends its threads and worker processes.

    Streams that are still open when the interpreter ends are closed then: worker processes that are
    merely abandoned leave shared memory and noise behind.
    """

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches
        _open.add(self)

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except RuntimeError as e:
            if "terminated unexpectedly" not in str(e):
                raise
            self.close()
            # Signal 7 is a bus error: shared memory that is promised but not there.
            lack = "shared memory (/dev/shm; docker run --shm-size)" if "-7" in str(e) else "memory"
            raise DataError(
                f"A process that reads data has died ({str(e).split('. ')[0]}), most often for "
                f"lack of {lack}: try a smaller --config.data.workers, and start the run again "
                "with the same --workdir to resume it."
            ) from e

    def close(self) -> None:
        """Ends reading; safe to call twice."""
        batches, self._batches = self._batches, iter(())
        _open.discard(self)
        if hasattr(batches, "close"):
            batches.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_open: "weakref.WeakSet[Stream]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for stream in list(_open):
        with contextlib.suppress(Exception):  # nothing may keep the interpreter from ending
            stream.close()
    gc.collect()  # Grain's iterators, which would complain of their half-dismantled modules
    _finish_deletions()


def _finish_deletions() -> None:
    """Waits for the thread in which Grain unlinks shared memory, lest it be killed half-way."""
    with contextlib.suppress(ImportError, AttributeError):
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        pool = SharedMemoryArray._del_thread_pool
        if pool is not None:
            SharedMemoryArray._disable_async_del()  # what comes later is unlinked at once
            pool.close()
            pool.join()
