"""The order and the random numbers of training, as functions of (seed, position) alone.

Position p of the endless stream of shuffled epochs is the same example for any number of processes,
workers and threads, whether the data set is read from disk or held in memory.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

DRAWS = (10, 4)  # random numbers of an example: attempts to find a crop, numbers per attempt


@functools.lru_cache(maxsize=2)  # the current epoch, and the next one for batches read ahead
def _epoch(length: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples' numbers in the order of one epoch, int64 [length]."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def examples_at(positions: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Returns the numbers of the examples at some positions of the stream, int64 [n].

    Args:
      positions: int64 [n], ascending.
      length: number of examples in the data set.
      seed: of the order.
    """
    epochs, within = np.divmod(positions, length)
    parts = [
        _epoch(length, seed, int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=1024)  # all classes that a batch is likely to have
def _pool_epoch(length: int, seed: int, pool: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch of one pool, int64 [length]."""
    return np.random.default_rng([seed, 1, pool, epoch]).permutation(length)


def balanced_at(positions: np.ndarray, pools: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Returns the numbers of the examples at some positions, each pool equally often, int64 [n].

    Each run of as many positions as there are pools has one example of each, in random order; the
    examples of a pool come in shuffled epochs of their own.

    Args:
      positions: int64 [n].
      pools: numbers of the examples of each class, int64 [at least 1] each.
      seed: of the order.
    """
    cycles, places = np.divmod(positions, len(pools))
    found = np.empty(len(positions), np.int64)
    for i, (cycle, place) in enumerate(zip(cycles.tolist(), places.tolist(), strict=True)):
        which = int(_epoch(len(pools), seed, cycle)[place])
        pool = pools[which]
        epoch, within = divmod(cycle, len(pool))
        found[i] = pool[_pool_epoch(len(pool), seed, which, epoch)[within]]
    return found


def draws_at(start: int, count: int, seed: int) -> np.ndarray:
    """Returns the host's random numbers for `count` positions from `start` on.

    A new generator for each example would take a twentieth of the time of its decoding. Philox can
    jump to any position instead.

    Returns:
      float64 [count, *DRAWS], uniform from 0 to 1.
    """
    generator = np.random.Philox(key=seed)
    generator.advance(start * math.prod(DRAWS) // 4)  # a step of Philox gives 4 numbers
    return np.random.Generator(generator).random((count, *DRAWS))
