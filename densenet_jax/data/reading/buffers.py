"""Reuses the memory of batches: a fresh page costs more time than writing its pixels.

In one process, an array is reused when nothing refers to it any more. Between a worker and the
training process, the receiver returns a block of shared memory by a flag in the block's first byte,
when nothing refers to the array in it any more.

A block's name is removed (unlinked) as soon as both processes have it open, which is when the first
message about it arrives. The block then outlives its worker, and the system frees it when both
processes have ended, even if they were killed.
"""

import functools
import math
import multiprocessing.util
import sys
import threading
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

_HEADER = 64  # bytes before a block's array: the flag, and the rest of its cache line
_FREE, _TAKEN = 0, 1


class Recycler:
    """Returns uint8 arrays, and reuses those to which nothing refers any more."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a uint8 array of this shape with arbitrary contents."""
        with self._lock:
            self._arrays = [array for array in self._arrays if array.shape == shape]
            for array in self._arrays:
                # The list, this loop and the call itself refer to it. A view counts as well.
                if sys.getrefcount(array) <= 3:
                    return array
            array = np.empty(shape, np.uint8)
            self._arrays.append(array)
            return array

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
      block: the block, in the worker; None in the receiver.
      memory: the opened block, in the receiver, for the first message about it; else None.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        block: "Block | None" = None,
        memory: SharedMemory | None = None,
    ):
        self.name, self.shape, self.block, self.memory = name, shape, block, memory

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.block is not None  # only workers pickle messages
        return _arrived, (self.name, self.shape, self.block.claim())


def _arrived(name: str, shape: tuple[int, ...], first: bool) -> Message:
    """Returns a message in the receiver; the first one about a block opens and unlinks it."""
    memory = SharedMemory(name) if first else None
    if memory:
        memory.unlink()
    return Message(name, shape, memory=memory)


class Block:
    """A worker's block of shared memory, with space for an array of `size` bytes."""

    def __init__(self, size: int):
        self.size = size
        # Any: the type of SharedMemory.buf includes None, which it is only after `close`.
        self.memory: Any = SharedMemory(create=True, size=_HEADER + size)
        self._claimed = threading.Lock()

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the block's array, uint8 of a shape that fits in it."""
        return np.ndarray(shape, np.uint8, self.memory.buf, _HEADER)

    def message(self, shape: tuple[int, ...]) -> Message:
        """Returns the message that sends an array of this shape in the block to the receiver."""
        return Message(self.memory.name, shape, self)

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


def take_block(shape: tuple[int, ...]) -> Block:
    """Returns a block for a uint8 array of this shape: a free one if there is one, or a new one."""
    return _blocks().take(math.prod(shape))


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
        return np.asarray(_Lease(self._memories[message.name], message.shape))


# Reentrant, because a lease may be deleted during the deletion of another one in the same thread.
_fence = threading.RLock()


class _Lease:
    """The object to which an array in a worker's block and all its views refer.

    When it is deleted, there are no more of them, and it returns the block to the worker.
    """

    def __init__(self, memory: SharedMemory, shape: tuple[int, ...]):
        self._memory: Any = memory  # keeps the block open as long as there is an array
        array = np.ndarray(shape, np.uint8, memory.buf, _HEADER)
        self.__array_interface__ = array.__array_interface__

    # The defaults keep objects that are no longer global when the interpreter exits.
    def __del__(self, fence: Any = _fence, free: int = _FREE) -> None:
        # The worker must not see the flag before all reads of the array are done. On ARM, only
        # taking a lock guarantees that order.
        for _ in range(2):
            with fence:
                pass
        self._memory.buf[0] = free
