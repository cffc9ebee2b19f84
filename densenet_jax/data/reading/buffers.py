"""Reuses the memory of batches, because a new page of memory costs more time than its pixels.

An array is lent: it and all its views refer to a `_Lease`, and when the last of them is deleted,
the lease gives the memory back. In one process it goes into a list of free arrays; the training
process returns a block of a worker's shared memory by a flag in the block's first byte.

A block's name is removed (unlinked) as soon as both processes have it open, which is when the first
message about it arrives. The block then outlives its worker, and the system frees it when both
processes have ended, even if they were killed.
"""

import functools
import math
import multiprocessing.util
import threading
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

_HEADER = 64  # bytes before a block's array: the flag, and the rest of its cache line
_FREE, _TAKEN = 0, 1


class _Lease:
    """The object to which a lent array and all its views refer."""

    def __init__(self, array: np.ndarray, give_back: Callable[[np.ndarray], object]):
        """Lends an array; `np.asarray` of the lease is what its borrower gets.

        Args:
          array: the array.
          give_back: called with the array when nothing refers to the lease any more.
        """
        self._array, self._give_back = array, give_back
        self.__array_interface__ = array.__array_interface__

    def __del__(self) -> None:
        self._give_back(self._array)


class Recycler:
    """Lends arrays, and reuses the memory of those that are given back."""

    def __init__(self) -> None:
        self._kind: tuple[tuple[int, ...], str] | None = None
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
        """Returns an array of this shape and type with arbitrary contents."""
        with self._lock:
            if self._kind != (shape, dtype):
                # Lent arrays of the old kind return to the old list, which then disappears.
                self._kind, self._free = (shape, dtype), []
            free = self._free
        try:
            array = free.pop()  # atomic, as is `append`: a lease may end at any moment
        except IndexError:
            array = np.empty(shape, dtype)
        return np.asarray(_Lease(array, free.append))

    def __reduce__(self) -> tuple[Any, ...]:
        return Recycler, ()


class Message:
    """The place of an array in a worker's shared memory, small enough for a queue.

    Unpickling the first message about a block opens the block. It must not wait until the message
    is read: Grain takes all messages from the queue before it lets the worker end, but may keep
    them for a while, and a block that is not open would then be gone.

    Attributes:
      name: of the block.
      shape: of the array in the block.
      dtype: of the array.
      block: the block, in the worker; None in the receiver.
      memory: the opened block, in the receiver, for the first message about it; else None.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "uint8",
        block: "Block | None" = None,
        memory: SharedMemory | None = None,
    ):
        self.name, self.shape, self.dtype = name, shape, dtype
        self.block, self.memory = block, memory

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.block is not None  # only workers pickle messages
        return _arrived, (self.name, self.shape, self.dtype, self.block.claim())


def _arrived(name: str, shape: tuple[int, ...], dtype: str, first: bool) -> Message:
    """Returns a message in the receiver; the first one about a block opens and unlinks it."""
    memory = SharedMemory(name) if first else None
    if memory:
        memory.unlink()
    return Message(name, shape, dtype, memory=memory)


class Block:
    """A worker's block of shared memory, with space for an array of `size` bytes."""

    def __init__(self, size: int):
        self.size = size
        # Any: the type of SharedMemory.buf includes None, which it is only after `close`.
        self.memory: Any = SharedMemory(create=True, size=_HEADER + size)
        self._claimed = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
        """Returns the block's array, of a shape and type that fit in it."""
        return np.ndarray(shape, dtype, self.memory.buf, _HEADER)

    def message(self, shape: tuple[int, ...], dtype: str = "uint8") -> Message:
        """Returns the message that sends the block's array to the receiver."""
        return Message(self.memory.name, shape, dtype, self)

    def claim(self) -> bool:
        """Returns True to the first caller, who must see to it that the block is unlinked."""
        return self._claimed.acquire(blocking=False)


class _Blocks:
    """This worker's blocks; those that no message has claimed are unlinked when the worker ends."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._lock = threading.Lock()
        self._ended = False
        multiprocessing.util.Finalize(None, self._end, exitpriority=10)

    def take(self, size: int) -> Block:
        """Returns a free block with space for `size` bytes, or a new one."""
        with self._lock:
            if self._ended:  # a thread may still be reading for a moment
                raise RuntimeError("The worker process is ending.")
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
    """Returns the blocks of this process."""
    return _Blocks()


def take_block(shape: tuple[int, ...], dtype: str = "uint8") -> Block:
    """Returns a block for an array of this shape and type: a free one, or else a new one."""
    return _blocks().take(math.prod(shape) * np.dtype(dtype).itemsize)


def give_back(block: Block) -> None:
    """Frees a block that will not be sent."""
    block.memory.buf[0] = _FREE


class Receiver:
    """Replaces messages by the arrays in workers' blocks, in the training process.

    A block is returned to its worker when nothing refers to its array any more.
    """

    def __init__(self) -> None:
        self._memories: dict[str, SharedMemory] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns a batch {name: `Message` or array} as {name: array}."""
        return {
            key: self._receive(value) if isinstance(value, Message) else np.array(value)
            for key, value in batch.items()
        }

    def _receive(self, message: Message) -> np.ndarray:
        if message.memory:
            self._memories[message.name] = message.memory
        memory = self._memories[message.name]
        array = np.ndarray(message.shape, message.dtype, memory.buf, _HEADER)
        return np.asarray(_Lease(array, functools.partial(_free_block, memory)))


# Reentrant, because a lease may be deleted during the deletion of another one in the same thread.
_fence = threading.RLock()


# The defaults keep objects that are no longer global when the interpreter exits.
def _free_block(memory: Any, array: np.ndarray, fence: Any = _fence, free: int = _FREE) -> None:
    """Returns a block of shared memory to its worker.

    Args:
      memory: the block's memory.
      array: the array in it, to which nothing refers any more.
    """
    # The worker must not see the flag before all reads of the array are done. On ARM, only taking a
    # lock guarantees that order.
    for _ in range(2):
        with fence:
            pass
    memory.buf[0] = free
