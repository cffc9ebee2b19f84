"""The order of training: a function of (seed, position) alone.

Position p of the endless stream of shuffled epochs holds the same example whatever the number of
processes, workers or threads, and whether the data set is read from disk or held in memory.
"""

import functools

import numpy as np


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


def rng_at(position: int, seed: int) -> np.random.Generator:
    """Returns the generator for the host's random choices at a position."""
    return np.random.Generator(np.random.Philox(key=[seed, position]))
