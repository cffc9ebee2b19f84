"""Grain: shuffle, shard, decode, batch; and the batches on their way to the mesh.

The order of examples is a function of (seed, position) alone, whatever the number of processes,
workers or threads: global batch b holds positions [b B, (b + 1) B) of an endless stream of shuffled
epochs.  A run's position in its data is therefore its step, and resuming means starting there.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from densenet_jax.data import host
from densenet_jax.data.sources import Source

Batch = dict[str, Any]


class _ProcessShare(grain.MapDataset):
    """A process's contiguous share of every global batch."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, index: int, count: int):
        super().__init__(parent)
        self._batch, self._share, self._offset = batch_size, batch_size // count, None
        self._offset = index * self._share
        self._length = len(parent) // batch_size * self._share

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.slice(i)
        batch, within = divmod(i, self._share)
        return self._parent[batch * self._batch + self._offset + within]


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
) -> grain.IterDataset:
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

    Yields:
      {"image": uint8 [b, H, W, C], "label": int32 [b]} with b = batch_size / process_count.
    """
    prepare = functools.partial(
        _train_example,
        image_size=image_size,
        channels=channels,
        random_crop=random_crop,
        crop_scale=tuple(crop_scale),
    )
    examples = grain.MapDataset.source(source.examples).seed(seed).shuffle().repeat()
    examples = examples.random_map(prepare)
    share = _ProcessShare(examples, batch_size, process_index, process_count)
    batches = share.batch(batch_size // process_count)[start:]
    return _read(batches, workers)


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
) -> grain.IterDataset:
    """Returns this process's part of one pass over a split, every example exactly once.

    The last batch is filled with blank images.

    Yields:
      {"image": uint8 [b, H, W, C], "label": int32 [b], "mask": bool [b]}; the mask is False for
      the filling.
    """
    padded = -(-len(source) // batch_size) * batch_size
    load = functools.partial(
        _eval_example,
        examples=source.examples,
        image_size=image_size,
        channels=channels,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
    )
    share = _ProcessShare(grain.MapDataset.range(padded), batch_size, process_index, process_count)
    return _read(share.map(load).batch(batch_size // process_count), workers)


def to_mesh(batches: grain.IterDataset, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
    """Iterates over batches as global arrays, two of them on the devices ahead of their use."""

    def put(batch: Batch) -> Batch:
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    return iter(ThreadPrefetchIterDataset(batches.map(put), prefetch_buffer_size=2))


def _read(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads batches ahead, in order: whole batches go to threads or processes, so none is mixed."""
    if workers:
        # Each worker reads with one thread: the processes are the parallelism.
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        _parse_flags()
        return batches.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
    threads = min(os.cpu_count() or 1, 16)
    return batches.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))


def _parse_flags() -> None:
    """Grain's workers read absl flags, which nobody has parsed in a notebook or a test."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _train_example(
    example: dict,
    rng: np.random.Generator,
    *,
    image_size: int,
    channels: int,
    random_crop: bool,
    crop_scale: tuple[float, float],
) -> Batch:
    image = host.decode(example["image"], channels)
    if random_crop:
        image = host.random_resized_crop(image, rng, image_size, crop_scale)
    else:
        image = host.resize(image, image_size, image_size, "bicubic")
    return {"image": image, "label": np.int32(example["label"])}


def _eval_example(
    index: int,
    *,
    examples,
    image_size: int,
    channels: int,
    crop_fraction: float,
    interpolation: str,
) -> Batch:
    if index >= len(examples):
        blank = np.zeros((image_size, image_size, channels), np.uint8)
        return {"image": blank, "label": np.int32(0), "mask": np.bool_(False)}
    example = examples[index]
    image = host.decode(example["image"], channels)
    image = host.center_crop(image, image_size, crop_fraction, interpolation)
    return {"image": image, "label": np.int32(example["label"]), "mask": np.bool_(True)}
