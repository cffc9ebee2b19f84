"""Batches gathered on the device from a training split that every device holds.

The host computes the order, which is a function of (seed, position) as in all other cases, and
sends the numbers of the examples, 4 bytes each; the device gathers their rows. Every device holds
the whole split: dividing it over the devices would save memory that is not scarce (CIFAR has
154 MB) and make every batch an exchange between devices.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from densenet_jax.data.reading.batches import TrainBatches
from densenet_jax.data.reading.stream import Batch, Stream
from densenet_jax.data.sources.source import Arrays, Source

DEVICE_BYTES = 2**30  # largest size of the images that every device holds


def fits(source: Source) -> bool:
    """Returns whether a split is in memory, fitted, and small enough for every device."""
    held = source.examples
    return isinstance(held, Arrays) and held.fitted and held.images.nbytes <= DEVICE_BYTES


def put(source: Source, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the arrays of a split, copied to every device of a sharding's mesh.

    Args:
      source: a split for which `fits` is true.
      sharding: of a batch, over its first axis.

    Returns:
      {"image": [N, H, W, C], "label": int32 [N], "bad": int32 [N]}.
    """
    held, everywhere = source.examples, NamedSharding(sharding.mesh, PartitionSpec())
    assert isinstance(held, Arrays)
    assert held.bad is not None  # the split is fitted
    arrays = {"image": held.images, "label": held.labels, "bad": held.bad}
    return {
        name: jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)
        for name, array in arrays.items()
    }


def pick(arrays: dict[str, jax.Array], rows: jax.Array, sharding: NamedSharding) -> Batch:
    """Returns the batch of some examples, sharded over the devices; call it in a traced function.

    Args:
      arrays: as returned by `put`.
      rows: numbers of the examples, int32 [B].
      sharding: of the batch.

    Returns:
      {"image": [B, H, W, C], "label": int32 [B], "bad": int32 [B]}.
    """
    batch = {name: array[rows] for name, array in arrays.items()}
    return jax.lax.with_sharding_constraint(batch, sharding)


def batches(order: TrainBatches, start: int, sharding: NamedSharding) -> Stream:
    """Returns the batches from number `start` on, each gathered by a call of a compiled function.

    Args:
      order: the batches of a split for which `fits` is true.
      start: number of the first batch.
      sharding: of a batch, over its first axis.

    Yields:
      {"image": [B, H, W, C], "label": int32 [B], "bad": int32 [B]}, global arrays.
    """
    arrays = put(order.source, sharding)
    gather = jax.jit(functools.partial(pick, sharding=sharding))

    def gathered() -> Iterator[Batch]:
        for number in itertools.count(start):
            rows = order.indices(number).astype(np.int32)
            yield gather(arrays, jax.make_array_from_process_local_data(sharding, rows))

    return Stream(gathered())


def windows(
    order: TrainBatches, spans: Iterable[tuple[int, int]], length: int, sharding: NamedSharding
) -> Stream:
    """Returns the inputs of dispatches of several steps: the split and the rows of their batches.

    Args:
      order: the batches of a split for which `fits` is true.
      spans: (first, end) of each dispatch, which uses the batches first to end - 1, at most
        `length`.
      length: number of batches for which the compiled dispatch has room.
      sharding: of a batch, over its first axis.

    Yields:
      {"arrays": as returned by `put`, "rows": int32 [length, B], "count": int}; the first `count`
      rows are the examples of batches, the others are zeros.
    """
    arrays = put(order.source, sharding)
    rows_sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def cut() -> Iterator[dict[str, Any]]:
        for first, end in spans:
            rows = np.zeros((length, order.share), np.int32)
            rows[: end - first] = [order.indices(number) for number in range(first, end)]
            placed = jax.make_array_from_process_local_data(rows_sharding, rows)
            yield {"arrays": arrays, "rows": placed, "count": end - first}

    return Stream(cut())
