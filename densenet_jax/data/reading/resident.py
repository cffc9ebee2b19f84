"""A training split that lies on every device: a batch is then only its examples' numbers.

The host computes the order, as always a function of (seed, position), and sends 4 bytes an example;
the rows are gathered on the device.  Every device holds the whole split: a split over the devices
would save memory where there is plenty (CIFAR is 154 MB), and make every batch an exchange.
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

DEVICE_BYTES = 2**30  # of images, the most that every device holds


def fits(source: Source) -> bool:
    """Whether a split is held in memory, fitted to its use, and small enough for every device."""
    held = source.examples
    return isinstance(held, Arrays) and held.fitted and held.images.nbytes <= DEVICE_BYTES


def put(source: Source, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the split's arrays on every device of a sharding's mesh."""
    held, everywhere = source.examples, NamedSharding(sharding.mesh, PartitionSpec())
    arrays = {"image": held.images, "label": held.labels, "bad": held.bad}
    return {
        name: jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)
        for name, array in arrays.items()
    }


def pick(arrays: dict[str, jax.Array], rows: jax.Array, sharding: NamedSharding) -> Batch:
    """Returns the batch with the examples `rows` [B], spread over the devices; to be traced."""
    batch = {name: array[rows] for name, array in arrays.items()}
    return jax.lax.with_sharding_constraint(batch, sharding)


def batches(order: TrainBatches, start: int, sharding: NamedSharding) -> Stream:
    """Returns the batches from number `start` on, each gathered by a program of its own."""
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
    """Returns what dispatches of several steps need: the split, and the rows of their batches.

    Args:
      spans: (first, end): the numbers of the batches of each dispatch, at most `length`.

    Yields:
      {"arrays": the split's, "rows": int32 [length, b], of which the first `count` are meant,
       "count": int}.
    """
    arrays = put(order.source, sharding)
    in_turn = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def cut() -> Iterator[dict[str, Any]]:
        for first, end in spans:
            rows = np.zeros((length, order.share), np.int32)
            rows[: end - first] = [order.indices(number) for number in range(first, end)]
            rows = jax.make_array_from_process_local_data(in_turn, rows)
            yield {"arrays": arrays, "rows": rows, "count": end - first}

    return Stream(cut())
