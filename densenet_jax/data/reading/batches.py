"""Batch number b of a split, as a function of b: whole arrays, decoded by threads or by one worker.

A batch also holds `bad` int32 [b]: how many unreadable examples were passed over for each example.
"""

import concurrent.futures
import dataclasses
import functools
import os
from typing import Any, Protocol

import numpy as np

from densenet_jax.data.reading import buffers, host, order
from densenet_jax.data.reading import examples as reading
from densenet_jax.data.sources.source import Arrays, Source

Batch = dict[str, np.ndarray]
CHUNK = 512  # examples read together when a split is read from end to end
ENDLESS = 2**48  # batches: more than anyone trains
_recycler = buffers.Recycler()


class Rows(Protocol):
    """Something for each example of a split; small to pickle, for the worker processes."""

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        """Returns the rows of some examples, [b, ...]."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """What the batches of training and of evaluation share.

    Attributes:
      batch_size: examples in a global batch, over all processes.
      process_index, process_count: which contiguous share of every batch is this process's.
      strict: an unreadable example is an error, and not passed over.
      threads: that decode one batch together.
      shared: leave the images in shared memory, for another process, and give out a
        `buffers.Message` in their place.
    """

    source: Source
    batch_size: int
    image_size: int
    channels: int
    process_index: int
    process_count: int
    strict: bool
    threads: int
    shared: bool

    @property
    def share(self) -> int:
        return self.batch_size // self.process_count

    def positions(self, batch: int) -> np.ndarray:
        """Returns the positions, in the stream of examples, of this process's share of a batch."""
        start = batch * self.batch_size + self.process_index * self.share
        return np.arange(start, start + self.share)

    def fill(self, indices: np.ndarray, prepare, image_size: int) -> Batch:
        """Returns the examples `indices`, and blanks up to the share of this process.

        Args:
          prepare: `prepare(k)` is the function that crops the batch's example k.
          image_size: height and width of its images.
        """
        held, count, share = self.source.examples, len(indices), self.share
        if isinstance(held, Arrays) and held.fitted:
            parts = {"image": held.images, "label": held.labels, "bad": held.bad}
            blank = [(0, share - count)]
            return {
                key: array[indices]
                if count == share
                else np.pad(array[indices], blank + [(0, 0)] * (array.ndim - 1))
                for key, array in parts.items()
            }
        shape = (share, image_size, image_size, self.channels)
        block = buffers.take_block(shape) if self.shared else None
        images = block.array(shape) if block else _recycler.empty(shape)
        labels, bad = np.zeros(share, np.int32), np.zeros(share, np.int32)
        images[count:] = 0

        def one(k):
            labels[k], bad[k] = reading.load(
                self.source, int(indices[k]), prepare(k), self.strict, images[k]
            )

        try:
            for_each(one, count, self.threads)
        except BaseException:
            if block:
                buffers.give_back(block)
            raise
        return {"image": block.message(shape) if block else images, "label": labels, "bad": bad}


@dataclasses.dataclass(frozen=True)
class TrainBatches(Batches):
    """An endless sequence of shuffled batches.

    Attributes:
      later_sizes: (batch, image size) from which batch on images have another size, ascending.
      beside: rows of something for each example, given out as `teacher`; None: nothing.
    """

    random_crop: bool
    crop_scale: tuple[float, float]
    seed: int
    later_sizes: tuple[tuple[int, int], ...] = ()
    beside: Rows | None = None

    def __len__(self) -> int:
        return ENDLESS

    def indices(self, batch: int) -> np.ndarray:
        """Returns the examples' numbers in this process's share of a batch."""
        return order.examples_at(self.positions(batch), len(self.source), self.seed)

    def size_of(self, batch: int) -> int:
        """Returns height and width of a batch's images."""
        begun = [size for first, size in self.later_sizes if first <= batch]
        return begun[-1] if begun else self.image_size

    def __getitem__(self, batch: int) -> Batch:
        positions, image_size = self.positions(batch), self.size_of(batch)
        draws = [None] * self.share
        if self.random_crop:
            draws = order.draws_at(int(positions[0]), self.share, self.seed)

        def prepare(k):
            return functools.partial(
                host.train_crop,
                draws=draws[k],
                image_size=image_size,
                channels=self.channels,
                random_crop=self.random_crop,
                crop_scale=self.crop_scale,
            )

        indices = self.indices(batch)
        filled = self.fill(indices, prepare, image_size)
        return filled if self.beside is None else {**filled, "teacher": self.beside[indices]}


@dataclasses.dataclass(frozen=True)
class EvalBatches(Batches):
    """One pass over a split; blanks fill the last batch.

    `mask` bool [b] is False for the blanks, and for examples that cannot be read.
    """

    crop_fraction: float
    interpolation: str

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> Batch:
        indices = self.positions(batch)
        indices = indices[indices < len(self.source)]
        crop = functools.partial(
            host.eval_crop,
            image_size=self.image_size,
            channels=self.channels,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
        )
        batch = self.fill(indices, lambda _: crop, self.image_size)
        # What stands in for an unreadable example is counted at its own place.
        batch["mask"] = (batch["bad"] == 0) & (np.arange(self.share) < len(indices))
        batch["bad"] = (batch["bad"] > 0).astype(np.int32)
        return batch


def hold(
    source: Source,
    *,
    image_size: int,
    channels: int = 3,
    crop_fraction: float | None = None,
    interpolation: str = "bicubic",
    strict: bool = False,
) -> Source:
    """Reads a split once and returns it as one uint8 array in memory.

    `train_batches(random_crop=False)` and `eval_batches` then only pick rows of it, and give the
    same batches as before.

    Args:
      crop_fraction: of the evaluation crop; None: the whole image as a square, as for training.

    Returns:
      a source that needs no decoding. Unreadable examples are replaced and counted as always.
    """
    if isinstance(source.examples, Arrays) and source.examples.fitted:
        return source
    if crop_fraction is None:
        options = {"draws": None, "random_crop": False, "crop_scale": (1.0, 1.0)}
        crop = functools.partial(host.train_crop, **options)
    else:
        options = {"crop_fraction": crop_fraction, "interpolation": interpolation}
        crop = functools.partial(host.eval_crop, **options)
    crop = functools.partial(crop, image_size=image_size, channels=channels)
    images = np.empty((len(source), image_size, image_size, channels), np.uint8)
    labels, bad = np.empty(len(source), np.int32), np.empty(len(source), np.int32)

    def some(chunk):
        start = chunk * CHUNK
        numbers = range(start, min(start + CHUNK, len(source)))
        read_ahead = reading.read_together(source, numbers)
        for i in numbers:
            labels[i], bad[i] = reading.load(read_ahead, i, crop, strict, images[i])

    for_each(some, -(-len(source) // CHUNK), default_threads())
    return dataclasses.replace(source, examples=Arrays(images, labels, bad))


def default_threads() -> int:
    """Returns the number of cores this process may use, 16 at most."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8, 16)


@functools.cache
def _pool(pid: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")


def for_each(function, count: int, threads: int) -> None:
    """Calls `function(0)` to `function(count - 1)`, by threads where there are more than one."""
    if threads <= 1:
        for k in range(count):
            function(k)
        return
    chunk = max(1, min(64, count // (4 * threads)))

    def some(start: int) -> Any:
        for k in range(start, min(start + chunk, count)):
            function(k)

    for _ in _pool(os.getpid(), threads).map(some, range(0, count, chunk)):
        pass  # raises what a thread has raised
