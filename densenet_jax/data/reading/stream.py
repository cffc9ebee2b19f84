"""An iterator over batches that ends its threads and worker processes and frees shared memory."""

import atexit
import contextlib
import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any, Self

from densenet_jax.data.sources.source import DataError

Batch = dict[str, Any]


class Stream(Iterator[Batch]):
    """An iterator over batches; closing it ends the threads and worker processes that read ahead.

    Streams that are still open when the interpreter exits are closed then, because abandoned worker
    processes would leave shared memory and error output behind.
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
            said = f"A process that reads data has died ({str(e).split('. ')[0]})"
            if re.search(r"exit code:? 1\b", str(e)):  # an exception, and not a signal
                raise DataError(
                    f"{said}. Each of these processes imports the script again, so in a script the "
                    'training must stand below `if __name__ == "__main__":`; or set '
                    "config.data.workers=0."
                ) from e
            # Signal 7 is a bus error: the system has no memory for a page of shared memory.
            lack = "shared memory (/dev/shm; docker run --shm-size)" if "-7" in str(e) else "memory"
            raise DataError(
                f"{said}, most often for lack of {lack}. Reduce --config.data.workers, and start "
                "the run again with the same --workdir to resume it."
            ) from e

    def close(self) -> None:
        """Ends the threads and worker processes; further calls have no effect."""
        batches, self._batches = self._batches, iter(())
        _open.discard(self)
        if hasattr(batches, "close"):
            batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_open: "weakref.WeakSet[Stream]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Closes the open streams when the interpreter exits."""
    for stream in list(_open):
        with contextlib.suppress(Exception):  # no error may keep the interpreter from exiting
            stream.close()
    # Delete Grain's iterators now; later they would report errors from half-deleted modules.
    gc.collect()
    _finish_deletions()


def _finish_deletions() -> None:
    """Waits for the threads in which Grain unlinks shared memory, so that no block remains."""
    with contextlib.suppress(ImportError, AttributeError):
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        pool = SharedMemoryArray._del_thread_pool
        if pool is not None:
            SharedMemoryArray._disable_async_del()  # later blocks are unlinked directly
            pool.close()
            pool.join()
