"""Memory for batches that is used again: a fresh page costs more than the pixels written to it.

In one process an array is used again when nobody refers to it any more. Between a worker and the
process that trains, a block of shared memory is passed back by a flag in its first byte, when the
array in it is no longer referred to.

A block loses its name as soon as both have it open, when the first message about it arrives: it
then outlives its worker, and the system frees it when both have ended, in whatever way.
"""

import functools
import math
import multiprocessing.util
import sys
import threading
from multiprocessing.shared_memory import SharedMemory

import numpy as np

_HEADER = 64  # bytes before a block's array: the flag, and the rest of its cache line
_FREE, _TAKEN = 0, 1


class Recycler:
    """Gives out uint8 arrays; one that nobody refers to any more is given out again."""

    def __init__(self):
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an array with any contents."""
        with self._lock:
            self._arrays = [array for array in self._arrays if array.shape == shape]
            for array in self._arrays:
                # Referred to by the list, this loop, and the call itself; views count too.
                if sys.getrefcount(array) <= 3:
                    return array
            array = np.empty(shape, np.uint8)
            self._arrays.append(array)
            return array

    def __reduce__(self):
        return Recycler, ()


class Message:
    """Says where a worker has left an array: small enough for a queue.

    The first one about a block opens it where it arrives, not where it is read: Grain takes all
    messages from the queue before it lets the worker end, but may keep them for a while.

    Attributes:
      name, shape: of the block, and of the array in it.
      block: the worker's end of it; None where the message has arrived.
      memory: the block, where the first message about it has arrived.
    """

    def __init__(self, name: str, shape: tuple[int, ...], block=None, memory=None):
        self.name, self.shape, self.block, self.memory = name, shape, block, memory

    def __reduce__(self):
        return _arrived, (self.name, self.shape, self.block.claim())


def _arrived(name: str, shape: tuple[int, ...], first: bool) -> Message:
    memory = SharedMemory(name) if first else None
    if memory:
        memory.unlink()
    return Message(name, shape, memory=memory)


class Block:
    """A worker's block of shared memory, with an array in it."""

    def __init__(self, size: int):
        self.size = size
        self.memory = SharedMemory(create=True, size=_HEADER + size)
        self._claimed = threading.Lock()

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, np.uint8, self.memory.buf, _HEADER)

    def message(self, shape: tuple[int, ...]) -> Message:
        return Message(self.memory.name, shape, self)

    def claim(self) -> bool:
        """Returns whether it is up to the caller that the block is unlinked: to the first one."""
        return self._claimed.acquire(blocking=False)


class _Blocks:
    """This worker's blocks; those of which nobody has heard are unlinked when it ends."""

    def __init__(self):
        self._blocks: list[Block] = []
        self._lock = threading.Lock()
        self._ended = False
        multiprocessing.util.Finalize(None, self._end, exitpriority=10)

    def take(self, size: int) -> Block:
        with self._lock:
            if self._ended:  # a thread may read on for a moment
                raise RuntimeError("the worker is ending")
            for block in self._blocks:
                if block.size >= size and block.memory.buf[0] == _FREE:
                    break
            else:
                block = Block(size)
                self._blocks.append(block)
            block.memory.buf[0] = _TAKEN
            return block

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            for block in self._blocks:
                if block.claim():
                    block.memory.unlink()


@functools.cache
def _blocks() -> _Blocks:
    return _Blocks()


def take_block(shape: tuple[int, ...]) -> Block:
    """Returns a block for an array of a shape that the receiver has given back, or a new one."""
    return _blocks().take(math.prod(shape))


def give_back(block: Block) -> None:
    """Frees a block that will not be sent after all."""
    block.memory.buf[0] = _FREE


class Receiver:
    """Gives out the arrays in workers' blocks; a block is free again when its array is gone."""

    def __init__(self):
        self._memories: dict[str, SharedMemory] = {}

    def __call__(self, batch: dict) -> dict:
        return {
            key: self._receive(value) if isinstance(value, Message) else np.array(value)
            for key, value in batch.items()
        }

    def _receive(self, message: Message) -> np.ndarray:
        if message.memory:
            self._memories[message.name] = message.memory
        return np.asarray(_Lease(self._memories[message.name], message.shape))


_fence = threading.RLock()  # a lease may end amid another's end, in the same thread


class _Lease:
    """What an array in a worker's block, and every view of it, refers to."""

    def __init__(self, memory: SharedMemory, shape: tuple[int, ...]):
        self._memory = memory  # not closed before the array is gone, whoever else forgets it
        array = np.ndarray(shape, np.uint8, memory.buf, _HEADER)
        self.__array_interface__ = array.__array_interface__

    def __del__(self, fence=_fence, free=_FREE):  # globals are gone when the interpreter ends
        # The block must not look free before it has been read: on ARM only locks see to that.
        for _ in range(2):
            with fence:
                pass
        self._memory.buf[0] = free
