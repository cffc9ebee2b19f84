"""The kernels of a block's convolutions, as the GPU kernels read them: parts of one array.

Each convolution needs its kernel in 16 bits.  One GPU kernel converts all those of a block.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

UNIT = 64  # kernels begin at multiples, so that GPU kernels can load 16 bytes at a time


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["start", "shape"]
)
@dataclasses.dataclass(frozen=True)
class Weights:
    """A convolution's kernel within an array.

    Attributes:
      data: of one dimension, with the kernels of several convolutions.
      start: where this one begins.
      shape: [k, k, C, D], or [C, D].
    """

    data: jax.Array
    start: int
    shape: tuple[int, ...]

    @property
    def size_in_bytes(self) -> int:
        return math.prod(self.shape) * self.data.dtype.itemsize

    def array(self) -> jax.Array:
        """Returns the kernel alone."""
        return self.data[self.start : self.start + math.prod(self.shape)].reshape(self.shape)


def pack(kernels: Sequence[jax.Array], dtype: jax.typing.DTypeLike) -> list[Weights]:
    """Returns convolutions' kernels, converted to dtype, as parts of one array."""
    if not kernels:
        return []
    parts = [jnp.pad(w.astype(dtype).reshape(-1), (0, -w.size % UNIT)) for w in kernels]
    starts = [sum(map(len, parts[:i])) for i in range(len(parts))]
    data = jnp.concatenate(parts)
    return [Weights(data, at, w.shape) for at, w in zip(starts, kernels, strict=True)]


def packed(w: jax.Array | Weights, dtype: jax.typing.DTypeLike) -> Weights:
    """Returns a kernel as `pack` returned it, or else as the only one of its array."""
    return w if isinstance(w, Weights) else pack([w], dtype)[0]


def unpacked(w: jax.Array | Weights) -> jax.Array:
    """Returns a kernel that `pack` may have returned as an array."""
    return w.array() if isinstance(w, Weights) else w
