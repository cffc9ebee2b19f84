"""The order of training: a function of (seed, position) alone.

Position p of the endless stream of shuffled epochs holds the same example whatever the number of
processes, workers or threads, and whether the data set is read from disk or held in memory.
"""

import functools
import math

import numpy as np

DRAWS = (10, 4)  # for an example: attempts to find a region, and numbers for each


@functools.lru_cache(maxsize=2)  # an epoch, and the next while batches are read ahead
def _epoch(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def examples_at(positions: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Returns the examples' numbers at some positions of the stream.

    Args:
      positions: int64, ascending.
      length: number of examples in the data set.
    """
    epochs, within = np.divmod(positions, length)
    parts = [
        _epoch(length, seed, int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


def draws_at(start: int, count: int, seed: int) -> np.ndarray:
    """Returns the host's random numbers for `count` positions from `start` on.

    A generator for every example would take as long as a twentieth of its decoding. Philox can
    jump to any position instead.

    Returns:
      float64 [count, *DRAWS] from 0 to 1.
    """
    generator = np.random.Philox(key=seed)
    generator.advance(start * math.prod(DRAWS) // 4)  # a step of Philox makes four numbers
    return np.random.Generator(generator).random((count, *DRAWS))
