"""Batches read ahead by Grain's threads or worker processes, and put on the mesh.

The order of examples is a function of (seed, position) alone, whatever the number of processes,
workers or threads: global batch b holds positions [b B, (b + 1) B) of an endless stream of shuffled
epochs.  A run's position in its data is therefore its step, and resuming means starting there.
"""

import dataclasses

import grain
import jax
from grain.experimental import ThreadPrefetchIterDataset
from jax.sharding import NamedSharding

from densenet_jax.data.reading import buffers, resident, worker_lifetime
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
      workers: decoding processes; 0: threads of this one.
    """

    batches: Batches
    workers: int
    start: int = 0

    def __iter__(self) -> Stream:
        return Stream(iter(self.dataset()))

    def dataset(self) -> grain.IterDataset:
        """Returns the Grain data set."""
        batches = grain.MapDataset.source(self.batches)[self.start :]
        if not self.workers:
            # Threads share a batch, so that few are under way; the second keeps them busy at
            # the end of the first.
            return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        _parse_flags()
        # Each worker makes whole batches with one thread: the processes are the parallelism.
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        # Labels are too few for shared memory of their own.
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
) -> Reader:
    """Returns this process's part of an endless stream of global batches.

    Args:
      source: the training split.
      batch_size: examples in a global batch, over all processes.
      image_size: height and width of the images given out.
      random_crop: random-resized-crop; False: the whole image, resized if it has another size.
      crop_scale: range of the crop's share of the area.
      seed: of order and crops.
      start: number of global batches to leave out at the beginning (the step to resume at).
      workers: decoding processes; 0: threads of this one.
      strict: raise DataError for an unreadable example instead of passing over it.
      later_sizes: (batch, image size) from which batch on images have another size, ascending.
      beside: rows of something for each example of the split, see `Yields`.

    Yields:
      {"image": uint8 [b, H, W, C], "label": int32 [b], "bad": int32 [b]} with
      b = batch_size / process_count; `bad` counts the unreadable examples passed over.  With
      `beside` also {"teacher": its rows of the examples [b, ...]}.
    """
    _check(source, batch_size, image_size, channels, process_count)
    if random_crop and _fitted(source):
        raise DataError(
            "data.in_memory holds images already cropped, so data.random_crop must be False; "
            "pass --config.data.random_crop=False or --config.data.in_memory=False."
        )
    if later_sizes and _fitted(source):
        raise DataError(
            "data.in_memory holds images of one size, so data.train_sizes can have one at most; "
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
        crop_scale=tuple(crop_scale),
        seed=seed,
        later_sizes=tuple(later_sizes),
        beside=beside,
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
) -> Reader:
    """Returns this process's part of one pass over a split, every example exactly once.

    The last batch is filled with blank images.

    Yields:
      {"image": uint8 [b, H, W, C], "label": int32 [b], "mask": bool [b], "bad": int32 [b]}; the
      mask is False for the filling and for unreadable examples, which `bad` counts.
    """
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
    )
    return Reader(batches, min(workers, len(batches)))


def to_mesh(reader: Reader, sharding: NamedSharding) -> Stream:
    """Returns an iterator over batches as global arrays, two of them on the devices in advance.

    The images of a training source held in memory are put on every device, if they are few enough;
    a batch is then only its examples' numbers, and the host does nothing.
    """
    batches = reader.batches
    on_device = isinstance(batches, TrainBatches) and batches.beside is None
    if on_device and resident.fits(batches.source):
        return resident.batches(batches, reader.start, sharding)

    def put(batch: Batch) -> Batch:
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    return Stream(
        iter(ThreadPrefetchIterDataset(reader.dataset().map(put), prefetch_buffer_size=2))
    )


def _fitted(source: Source) -> bool:
    return isinstance(source.examples, Arrays) and source.examples.fitted


def _check(
    source: Source, batch_size: int, image_size: int, channels: int, process_count: int
) -> None:
    if batch_size % process_count:
        raise DataError(
            f"The batch of {batch_size} examples cannot be shared by {process_count} processes; "
            "make the batch size a multiple of their number."
        )
    if not len(source):
        raise DataError(f"{source.name} has no examples.")
    expected = (image_size, image_size, channels)
    if _fitted(source) and source.examples.images.shape[1:] != expected:
        raise DataError(
            f"The images held in memory are {list(source.examples.images.shape[1:])}, but "
            f"data.image_size and data.channels ask for {list(expected)}."
        )


def _parse_flags() -> None:
    """Grain's workers read absl flags, which nobody has parsed in a notebook or a test."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
