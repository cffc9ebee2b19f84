"""Batches read ahead by Grain's threads or worker processes, and put on the devices of the mesh.

The order of examples is a function of (seed, position) alone, for any number of processes, workers
and threads: global batch n contains the positions [n B, (n + 1) B) of an endless stream of shuffled
epochs. The step of a run is therefore its position in the data, and a resumed run starts there.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jax.sharding import NamedSharding

from densenet_jax.data.augment import rectangles
from densenet_jax.data.reading import buffers, regions, resident, worker_lifetime
from densenet_jax.data.reading.batches import (
    Batches,
    EvalBatches,
    Rows,
    TrainBatches,
    default_threads,
    hold,
)
from densenet_jax.data.reading.stream import Batch, Stream
from densenet_jax.data.sources.source import Arrays, DataError, Source

in_memory = hold


@dataclasses.dataclass(frozen=True)
class Reader:
    """Batches from number `start` on; iterating starts the threads or processes that read ahead.

    Attributes:
      batches: the batches by number.
      workers: number of decoding processes; 0: threads of this process decode.
      start: number of the first batch.
    """

    batches: Batches
    workers: int
    start: int = 0

    def __iter__(self) -> Stream:
        return Stream(iter(self.dataset()))

    def dataset(self) -> grain.IterDataset:
        """Returns the batches as a Grain data set that reads ahead."""
        batches = grain.MapDataset.source(self.batches)[self.start :]
        if not self.workers:
            # All decoding threads share a batch, so that few batches are in progress; the second
            # keeps the threads busy at the end of the first.
            return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        _parse_flags()
        # Each worker decodes whole batches with one thread; the parallelism is that of processes.
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        # Labels are too small for blocks of shared memory of their own.
        small = grain.experimental.DatasetOptions(min_shm_size=2**16)
        batches = grain.experimental.WithOptionsIterDataset(batches, small)
        options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=1)
        batches = batches.mp_prefetch(options, worker_init_fn=worker_lifetime.end_with_parent)
        return batches.map(buffers.Receiver())


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    channels: int = 3,
    random_crop: bool = True,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    seed: int = 0,
    start: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    strict: bool = False,
    later_sizes: tuple[tuple[int, int], ...] = (),
    beside: Rows | None = None,
    pools: tuple[np.ndarray, ...] = (),
    fit: str = "crop",
    fill: tuple[float, ...] = (0.0,),
    dtype: str = "uint8",
    exif: bool = False,
) -> Reader:
    """Returns this process's part of an endless stream of global batches.

    Args:
      source: the training split.
      batch_size: number of examples in a global batch, over all processes.
      image_size: height and width of the images in pixels.
      channels: of the images.
      random_crop: whether to cut out a random region (random-resized-crop); otherwise the whole
        image is resized if it has another size.
      crop_scale: range of the crop's share of the image's area.
      seed: of the order and the crops.
      start: number of the first global batch: the step at which a run resumes.
      workers: number of decoding processes; 0: threads of this process decode.
      process_index: number of this process.
      process_count: number of processes that share each global batch.
      strict: whether an unreadable example raises DataError instead of being replaced.
      later_sizes: ((first batch, image size), ...) in ascending order: from that batch on, images
        have that size.
      beside: rows for the examples of the split, such as a teacher's logits, which batches contain
        as `teacher`.
      pools: numbers of the examples of each class, if each is to come equally often; see
        `subsets.pools`.
      fit: "pad": whole images get bands beside them; otherwise they are distorted to a square.
      fill: value of the bands.
      dtype: type of the pixels: "uint8", "uint16" or "float32".
      exif: whether images are turned upright, see `decoding.decode`.

    Yields:
      {"image": `dtype` [b, H, W, C], "label": int32 [b], "bad": int32 [b]} with
      b = batch_size / process_count; `bad` counts the unreadable examples that were skipped to
      obtain each example. With `beside` also {"teacher": [b, ...]}. Raw images are whole squares,
      with "box" float32 [b, 4], the rectangles that `to_mesh` cuts out.

    Raises:
      DataError: the batch cannot be divided among the processes, the split is empty, or options do
        not suit images held in memory.
    """
    regions.check(source, fit, exif)
    _check(source, batch_size, image_size, channels, process_count)
    if random_crop and _fitted(source):
        raise DataError(
            "data.in_memory keeps images that are already cropped, so data.random_crop must be "
            "False; pass --config.data.random_crop=False or --config.data.in_memory=False."
        )
    if later_sizes and _fitted(source):
        raise DataError(
            "data.in_memory keeps images of one size, so data.train_sizes can have at most one; "
            "pass --config.data.in_memory=False."
        )
    batches = TrainBatches(
        source=source,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        process_index=process_index,
        process_count=process_count,
        strict=strict,
        threads=1 if workers else default_threads(),
        shared=workers > 0,
        random_crop=random_crop,
        crop_scale=(crop_scale[0], crop_scale[1]),
        seed=seed,
        later_sizes=tuple(later_sizes),
        beside=beside,
        pools=pools,
        fit=fit,
        fill_value=tuple(fill),
        dtype=dtype,
        exif=exif,
    )
    return Reader(batches, workers, start)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    channels: int = 3,
    crop_fraction: float = 0.875,
    interpolation: str = "bicubic",
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    strict: bool = False,
    fit: str = "crop",
    fill: tuple[float, ...] = (0.0,),
    dtype: str = "uint8",
    exif: bool = False,
) -> Reader:
    """Returns this process's part of one pass over a split, with each example exactly once.

    The last batch is filled with blank images.

    Args:
      source: the split.
      batch_size: number of examples in a global batch, over all processes.
      image_size: height and width of the images in pixels.
      channels: of the images.
      crop_fraction: share of the shorter side that the crop shows, see `host.center_crop`.
      interpolation: "bicubic" or "bilinear".
      workers: number of decoding processes; 0: threads of this process decode.
      process_index: number of this process.
      process_count: number of processes that share each global batch.
      strict: whether an unreadable example raises DataError instead of being masked.
      fit: "crop": the central square; "squash": the whole image, distorted to a square; "pad": the
        whole image with bands beside it.
      fill: value of the bands.
      dtype: type of the pixels: "uint8", "uint16" or "float32".
      exif: whether images are turned upright, see `decoding.decode`.

    Yields:
      {"image": `dtype` [b, H, W, C], "label": int32 [b], "mask": bool [b], "bad": int32 [b]} with
      b = batch_size / process_count. The mask is False for blank images and for unreadable
      examples; `bad` is 1 for unreadable examples.

    Raises:
      DataError: the batch cannot be divided among the processes, the split is empty, or images held
        in memory have another size.
    """
    regions.check(source, fit, exif)
    _check(source, batch_size, image_size, channels, process_count)
    batches = EvalBatches(
        source=source,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        process_index=process_index,
        process_count=process_count,
        strict=strict,
        threads=1 if workers else default_threads(),
        shared=workers > 0,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        fit=fit,
        fill_value=tuple(fill),
        dtype=dtype,
        exif=exif,
    )
    return Reader(batches, min(workers, len(batches)))


def to_mesh(reader: Reader, sharding: NamedSharding) -> Stream:
    """Returns an iterator over batches as global arrays, two of which are on the devices early.

    Raw images are cropped there. If a training split is held in memory and small enough, all of it
    is put on every device, and the host only sends the numbers of each batch's examples (see
    `resident`).

    Args:
      reader: this process's part of the batches.
      sharding: of a batch over the devices of all processes, over its first axis.

    Yields:
      the reader's batches as global arrays [B, ...].
    """
    batches = reader.batches
    if (
        isinstance(batches, TrainBatches)
        and batches.beside is None
        and resident.fits(batches.source)
    ):
        return resident.batches(batches, reader.start, sharding)

    def put(batch: Batch) -> Batch:
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    placed = ThreadPrefetchIterDataset(reader.dataset().map(put), prefetch_buffer_size=2)
    return Stream(_cropped(reader, placed, sharding) if batches.source.raw_side else iter(placed))


def _cropped(reader: Reader, placed: grain.IterDataset, sharding: NamedSharding) -> Iterator[Batch]:
    """Yields batches of raw images with images of the reader's size, cut out on the devices.

    As in `resident`, the thread that trains makes these calls: all processes of a job then start
    their programs in the same order.

    Args:
      reader: of the batches.
      placed: its batches, already on the mesh.
      sharding: of a batch, over its first axis.
    """
    batches = reader.batches
    with Stream(iter(placed)) as stream:
        for number, batch in zip(itertools.count(reader.start), stream, strict=False):
            found = dict(batch)
            found["image"] = rectangles.cut(
                found["image"],
                found.pop("box"),
                size=batches.size_of(number),
                interpolation=batches.resampling,
                sharding=sharding,
            )
            yield found


def _fitted(source: Source) -> bool:
    """Returns whether a split is in memory, already cropped and resized for batches."""
    return isinstance(source.examples, Arrays) and source.examples.fitted


def _check(
    source: Source, batch_size: int, image_size: int, channels: int, process_count: int
) -> None:
    """Raises DataError if a split cannot give the requested batches."""
    if batch_size % process_count:
        raise DataError(
            f"The batch of {batch_size} examples cannot be shared by {process_count} processes; "
            "make the batch size a multiple of the number of processes."
        )
    if not len(source):
        raise DataError(f"{source.name} has no examples; choose another split.")
    expected = (image_size, image_size, channels)
    held = source.examples
    if isinstance(held, Arrays) and held.fitted and held.images.shape[1:] != expected:
        raise DataError(
            f"The images held in memory are {list(held.images.shape[1:])}, but data.image_size and "
            f"data.channels require {list(expected)}; pass --config.data.in_memory=False."
        )


def _parse_flags() -> None:
    """Marks absl's flags as parsed: Grain's workers read them, and notebooks and tests do not."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
