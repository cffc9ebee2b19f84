"""The stems: what happens to an image before the first dense block.

A stem is a row of `STEMS`: convolutions, whether each is followed by BN and ReLU, and a pooling.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Convolution(NamedTuple):
    """One convolution of a stem: kernel size, stride, and its share of the stem's features."""

    size: int
    stride: int
    share: float = 1.0


class Stem(NamedTuple):
    """How a stem is built.

    Attributes:
      convolutions: in order, named `conv0`, `conv1`, ...
      norm: BN and ReLU after each convolution (`norm0`, `norm1`, ...).
      pool: maps [B, H, W, C] to the first block's input.
      reduction: how many pixels of the image become one.
    """

    convolutions: tuple[Convolution, ...]
    norm: bool
    pool: Callable[[jax.Array], jax.Array]
    reduction: int


def max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """3x3 max pooling.  `SAME` would pad 112 pixels by (0, 1); the reference pads (1, 1)."""
    return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))


def blur_pool(x: jax.Array) -> jax.Array:
    """Halves x [B, H, W, C] with the binomial filter (1, 2, 1) / 4 along each axis (Zhang, 2019).

    Written as sums of strided slices, which fuse into one pass; the same filter as a depthwise
    convolution is far slower on most devices.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    x = (x[:, :-2:2] + 2 * x[:, 1:-1:2] + x[:, 2::2]) / 4
    return (x[:, :, :-2:2] + 2 * x[:, :, 1:-1:2] + x[:, :, 2::2]) / 4


def max_blur_pool(x: jax.Array) -> jax.Array:
    """Max pooling without stride, then the blur that halves: no aliasing."""
    return blur_pool(max_pool(x, stride=1))


_DEEP = (Convolution(3, 2, share=0.5), Convolution(3, 1, share=0.5), Convolution(3, 1))

STEMS = {
    "imagenet": Stem((Convolution(7, 2),), norm=True, pool=max_pool, reduction=4),
    "deep": Stem(_DEEP, norm=True, pool=max_pool, reduction=4),
    "deep_blur": Stem(_DEEP, norm=True, pool=max_blur_pool, reduction=4),
    "cifar": Stem((Convolution(3, 1),), norm=False, pool=lambda x: x, reduction=1),
}


def find_stem(name: str) -> Stem:
    """Returns a row of `STEMS`; ValueError names the rows there are."""
    if name not in STEMS:
        raise ValueError(f"stem is {name!r}; it must be one of {', '.join(map(repr, STEMS))}.")
    return STEMS[name]
