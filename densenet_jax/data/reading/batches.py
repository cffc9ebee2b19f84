"""Batch number n of a split as a function of n: whole arrays, decoded by threads or by one worker.

Each batch contains `bad`, int32 [b]: the number of unreadable examples that were skipped to obtain
each of its examples.
"""

import abc
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from densenet_jax.data.reading import buffers, host, order, regions
from densenet_jax.data.reading import examples as reading
from densenet_jax.data.sources.source import Arrays, RawImage, Source

# {"image": [b, H, W, C], or a `buffers.Message` about it, "label": int32 [b] or float32
# [b, L] (see `data.sources.source`), "bad": int32 [b], ...}.  Raw images are whole squares, with
# "box", float32 [b, 4] (see `regions.box`), which `pipeline.to_mesh` cuts out.
Batch = dict[str, Any]
CHUNK = 512  # number of examples read together when a whole split is read
ENDLESS = 2**48  # length of the training stream in batches: more than any run trains
_recycler = buffers.Recycler()


class Rows(Protocol):
    """An array with a row for each example of a split, such as the logits of a teacher.

    Its pickle must be small, because each worker process receives one.
    """

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        """Returns the rows [b, ...] of the examples with the numbers int64 [b]."""


@dataclasses.dataclass(frozen=True)
class Batches(abc.ABC):
    """The common part of training and evaluation batches.

    Attributes:
      source: the split.
      batch_size: number of examples in a global batch, over all processes.
      image_size: height and width of the images in pixels.
      channels: of the images.
      process_index: number of this process, which reads the contiguous share of each batch with
        this number.
      process_count: number of processes that share each batch.
      strict: whether an unreadable example raises DataError instead of being replaced.
      threads: number of threads that decode a batch together.
      fit: what becomes of images that are not square, see `host.train_crop` and `host.eval_crop`.
      fill_value: of the bands of `fit="pad"`.
      dtype: type of the pixels: "uint8", "uint16" or "float32".
      exif: whether images are turned upright.
      shared: whether the images are put in shared memory for another process; the batch then has a
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
    fit: str
    fill_value: tuple[float, ...]
    dtype: str
    exif: bool

    @property
    def look(self) -> dict[str, Any]:
        """The arguments that `host.train_crop` and `host.eval_crop` share."""
        keys = ("channels", "fit", "dtype", "exif")
        return {key: getattr(self, key) for key in keys} | {"fill": self.fill_value}

    @property
    def share(self) -> int:
        """Number of examples of a batch that this process reads."""
        return self.batch_size // self.process_count

    @property
    @abc.abstractmethod
    def resampling(self) -> str:
        """The interpolation of raw images, "bicubic" or "bilinear"."""

    def size_of(self, batch: int) -> int:
        """Returns the height and width of a batch's images in pixels."""
        return self.image_size

    def positions(self, batch: int) -> np.ndarray:
        """Returns the positions in the stream of this process's share of a batch, int64 [b]."""
        start = batch * self.batch_size + self.process_index * self.share
        return np.arange(start, start + self.share)

    def fill(
        self,
        indices: np.ndarray,
        prepare: Callable[[int], reading.Prepare],
        region: Callable[[int, RawImage], regions.Region],
        image_size: int,
    ) -> Batch:
        """Returns a batch of some examples, filled with blanks up to this process's share b.

        Args:
          indices: numbers of the examples, int64 [n] with n at most b.
          prepare: `prepare(k)` is the function that decodes and crops the batch's example k.
          region: `region(k, image)` is what is shown of it if it is raw.
          image_size: height and width of the images in pixels.

        Returns:
          {"image": [b, H, W, C] or a `buffers.Message` about it, "label": int32 [b] or
          float32 [b, L], "bad": int32 [b]}, and "box" of raw images.
        """
        held, count, share = self.source.examples, len(indices), self.share
        if isinstance(held, Arrays) and held.bad is not None:
            parts = {"image": held.images, "label": held.labels, "bad": held.bad}
            blank = [(0, share - count)]
            return {
                key: array[indices]
                if count == share
                else np.pad(array[indices], blank + [(0, 0)] * (array.ndim - 1))
                for key, array in parts.items()
            }
        raw_side = self.source.raw_side
        side = raw_side or image_size
        boxes = np.tile(regions.box(regions.WHOLE, side), (share, 1))
        shape = (share, side, side, self.channels)
        block = buffers.take_block(shape, self.dtype) if self.shared else None
        images = block.array(shape, self.dtype) if block else _recycler.empty(shape, self.dtype)
        labels, bad = self.source.blank_labels(share), np.zeros(share, np.int32)
        images[count:] = 0

        def whole(k: int, image: RawImage, *, out: np.ndarray) -> np.ndarray:
            pixels = host.typed(host.decode(image, self.channels), self.dtype)
            boxes[k] = regions.box(region(k, image), side)
            return pixels

        def load(k: int) -> None:
            crop = functools.partial(whole, k) if raw_side else prepare(k)
            labels[k], bad[k] = reading.load(
                self.source, int(indices[k]), crop, self.strict, images[k]
            )

        try:
            for_each(load, count, self.threads)
        except BaseException:
            if block:
                buffers.give_back(block)
            raise
        image = block.message(shape, self.dtype) if block else images
        filled = {"image": image, "label": labels, "bad": bad}
        return filled | {"box": boxes} if raw_side else filled


@dataclasses.dataclass(frozen=True)
class TrainBatches(Batches):
    """An endless sequence of shuffled batches.

    Attributes:
      random_crop: whether to cut out a random region; otherwise the whole image is resized.
      crop_scale: range of the region's share of the image's area.
      seed: of the order and the crops.
      later_sizes: ((first batch, image size), ...) in ascending order: from that batch on, images
        have that size.
      beside: rows for the examples, which batches contain as `teacher`; None: nothing.
      pools: numbers of the examples of each class, if each class is to come equally often.
    """

    random_crop: bool
    crop_scale: tuple[float, float]
    seed: int
    later_sizes: tuple[tuple[int, int], ...] = ()
    beside: Rows | None = None
    pools: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return ENDLESS

    def indices(self, batch: int) -> np.ndarray:
        """Returns the numbers of the examples in this process's share of a batch, int64 [b]."""
        if self.pools:
            return order.balanced_at(self.positions(batch), self.pools, self.seed)
        return order.examples_at(self.positions(batch), len(self.source), self.seed)

    @property
    def resampling(self) -> str:
        return host.FILTER_OF[self.random_crop]

    def size_of(self, batch: int) -> int:
        begun = [size for first, size in self.later_sizes if first <= batch]
        return begun[-1] if begun else self.image_size

    def __getitem__(self, batch: int) -> Batch:
        positions, image_size = self.positions(batch), self.size_of(batch)
        draws = None
        if self.random_crop:
            draws = order.draws_at(int(positions[0]), self.share, self.seed)

        def prepare(k: int) -> reading.Prepare:
            return functools.partial(
                host.train_crop,
                draws=None if draws is None else draws[k],
                image_size=image_size,
                random_crop=self.random_crop,
                crop_scale=self.crop_scale,
                **self.look,
            )

        def region(k: int, image: RawImage) -> regions.Region:
            own = None if draws is None else draws[k]
            return regions.shown_in_training(own, image.height, image.width, self.crop_scale)

        indices = self.indices(batch)
        filled = self.fill(indices, prepare, region, image_size)
        return filled if self.beside is None else {**filled, "teacher": self.beside[indices]}


@dataclasses.dataclass(frozen=True)
class EvalBatches(Batches):
    """One pass over a split, whose last batch is filled with blank images.

    Batches also contain `mask`, bool [b], which is False for blank images and for examples that
    cannot be read.

    Attributes:
      crop_fraction: share of the shorter side that the crop shows, see `host.center_crop`.
      interpolation: "bicubic" or "bilinear".
    """

    crop_fraction: float
    interpolation: str

    @property
    def resampling(self) -> str:
        return self.interpolation

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> Batch:
        indices = self.positions(batch)
        indices = indices[indices < len(self.source)]
        crop = functools.partial(
            host.eval_crop,
            image_size=self.image_size,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
            **self.look,
        )

        def region(_: int, image: RawImage) -> regions.Region:
            return regions.shown_in_evaluation(
                image.height, image.width, self.image_size, self.crop_fraction, self.fit
            )

        filled = self.fill(indices, lambda _: crop, region, self.image_size)
        # Each unreadable example counts once, in its own place. If the one after it is unreadable
        # too, both were skipped to fill the first place, and `bad` is 2 there.
        filled["mask"] = (filled["bad"] == 0) & (np.arange(self.share) < len(indices))
        filled["bad"] = (filled["bad"] > 0).astype(np.int32)
        return filled


def hold(
    source: Source,
    *,
    image_size: int,
    channels: int = 3,
    crop_fraction: float | None = None,
    interpolation: str = "bicubic",
    fit: str = "crop",
    fill: tuple[float, ...] = (0.0,),
    dtype: str = "uint8",
    exif: bool = False,
    strict: bool = False,
) -> Source:
    """Reads a split once and returns it as a source with one array in memory.

    `train_batches(random_crop=False)` and `eval_batches` then only pick rows of the array, and give
    the same batches as from the original source.

    Args:
      source: the split; it is returned unchanged if it is already in memory and fitted.
      image_size: height and width of the images in pixels.
      channels: of the images.
      crop_fraction: share of the shorter side that the evaluation crop shows; None: the whole image
        is shown, as for training.
      interpolation: of the evaluation crop, "bicubic" or "bilinear".
      fit, fill, dtype, exif: see `host.eval_crop`.
      strict: whether an unreadable example raises DataError instead of being replaced.

    Returns:
      a source whose examples are `Arrays` with `bad`, the counts of skipped unreadable examples.

    Raises:
      DataError: as for `examples.load`, or `fit` or `exif` does not suit raw images.
    """
    regions.check(source, fit, exif)
    if isinstance(source.examples, Arrays) and source.examples.fitted:
        return source
    crop: reading.Prepare
    look: dict[str, Any] = {"channels": channels, "fit": fit, "fill": fill}
    look |= {"dtype": dtype, "exif": exif, "image_size": image_size}
    if crop_fraction is None:
        crop = functools.partial(
            host.train_crop,
            draws=None,
            random_crop=False,
            crop_scale=(1.0, 1.0),
            **look,
        )
    else:
        crop = functools.partial(
            host.eval_crop,
            crop_fraction=crop_fraction,
            interpolation=interpolation,
            **look,
        )
    images = np.empty((len(source), image_size, image_size, channels), dtype)
    labels, bad = source.blank_labels(len(source)), np.zeros(len(source), np.int32)

    def load_chunk(chunk: int) -> None:
        start = chunk * CHUNK
        numbers = range(start, min(start + CHUNK, len(source)))
        read_ahead = reading.read_together(source, numbers)
        for i in numbers:
            labels[i], bad[i] = reading.load(read_ahead, i, crop, strict, images[i])

    for_each(load_chunk, -(-len(source) // CHUNK), default_threads())
    return dataclasses.replace(source, examples=Arrays(images, labels, bad), raw_side=0)


def default_threads() -> int:
    """Returns the number of cores this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8, 16)


@functools.cache
def _pool(pid: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Returns this process's pool of threads; a forked process has another pid and gets its own."""
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")


def for_each(function: Callable[[int], None], count: int, threads: int) -> None:
    """Calls `function(0)` to `function(count - 1)`, in this thread or, if more, in `threads`."""
    if threads <= 1:
        for k in range(count):
            function(k)
        return
    chunk = max(1, min(64, count // (4 * threads)))

    def call_chunk(start: int) -> None:
        for k in range(start, min(start + chunk, count)):
            function(k)

    for _ in _pool(os.getpid(), threads).map(call_chunk, range(0, count, chunk)):
        pass  # the iterator raises the errors of the threads
