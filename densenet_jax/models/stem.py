"""The stems, which process an image before the first dense block.

A stem is a row of `STEMS`: convolutions, whether BN and activation follow each, and a pooling.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from densenet_jax.models.activation import norm_act
from densenet_jax.models.block.plain import convolve
from densenet_jax.models.block.statistics import Moments, moments
from densenet_jax.models.inputs import check_name
from densenet_jax.models.pooling import every_second, norm_act_max_pool


class Convolution(NamedTuple):
    """One convolution of a stem: kernel size, stride, and its share of the stem's features."""

    size: int
    stride: int
    share: float = 1.0


class Stem(NamedTuple):
    """How a stem is built.

    Attributes:
      convolutions: in order, named `conv0`, `conv1`, ...
      norm: BN and activation after each convolution (`norm0`, `norm1`, ...).
      pool: the last BN and activation together with the pooling that follows: maps
        (x [B, H, W, C], gain, shift, name of the activation) to the first block's input.
      reduction: how many pixels of the image become one.
      convolve: maps (x, kernel, stride) to the convolution of x and its moments.
    """

    convolutions: tuple[Convolution, ...]
    norm: bool
    pool: Callable[[jax.Array, jax.Array, jax.Array, str], jax.Array] | None
    reduction: int
    convolve: Callable[[jax.Array, jax.Array, int], tuple[jax.Array, Moments]]

    @property
    def is_one_stage(self) -> bool:
        """Whether it computes what `block.plain.stem` does, for which there is a GPU kernel."""
        pooled = self.pool is norm_act_max_pool and self.convolve is measured_convolution
        return pooled and self.convolutions == (Convolution(7, 2),)


def measured_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Moments]:
    """Returns `convolve`'s result and its moments."""
    y = convolve(x, kernel, stride)
    return y, moments(y)


def same_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Moments]:
    """Returns the convolution of x with TensorFlow's padding "same", and its moments.

    With stride 2, an even size has one zero less before than after it.
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    y = lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)
    return y, moments(y)


def norm_act_same_max_pool(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> jax.Array:
    """Max pooling of f(x * gain + shift) with stride 2 and TensorFlow's padding "same"."""
    return nn.max_pool(norm_act(x, gain, shift, activation), (3, 3), (2, 2), "SAME")


def blur_pool(x: jax.Array) -> jax.Array:
    """Halves x [B, H, W, C] with the binomial filter (1, 2, 1) / 4 along each axis (Zhang, 2019).

    Written as sums of strided slices, which fuse into one pass; the same filter as a depthwise
    convolution is far slower on most devices.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    for axis in (1, 2):
        size = x.shape[axis]
        before, here, after = (every_second(x, axis, i, size - 2 + i) for i in range(3))
        x = (before + 2 * here + after) / 4
    return x


def norm_act_max_blur_pool(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> jax.Array:
    """Max pooling of f(x * gain + shift) without stride, then the blur that halves."""
    x = nn.max_pool(norm_act(x, gain, shift, activation), (3, 3), (1, 1), ((1, 1), (1, 1)))
    return blur_pool(x)


_DEEP = (Convolution(3, 2, share=0.5), Convolution(3, 1, share=0.5), Convolution(3, 1))

STEMS = {
    "imagenet": Stem(
        (Convolution(7, 2),),
        norm=True,
        pool=norm_act_max_pool,
        reduction=4,
        convolve=measured_convolution,
    ),
    "imagenet_same": Stem(
        (Convolution(7, 2),),
        norm=True,
        pool=norm_act_same_max_pool,
        reduction=4,
        convolve=same_convolution,
    ),
    "deep": Stem(
        _DEEP, norm=True, pool=norm_act_max_pool, reduction=4, convolve=measured_convolution
    ),
    "deep_blur": Stem(
        _DEEP, norm=True, pool=norm_act_max_blur_pool, reduction=4, convolve=measured_convolution
    ),
    "cifar_half": Stem(
        (Convolution(3, 2),), norm=False, pool=None, reduction=2, convolve=measured_convolution
    ),
    "cifar": Stem(
        (Convolution(3, 1),), norm=False, pool=None, reduction=1, convolve=measured_convolution
    ),
}


def find_stem(name: str) -> Stem:
    """Returns a row of `STEMS`; ValueError names the rows there are."""
    check_name("stem", name, STEMS)
    return STEMS[name]
