"""The arithmetic of a dense block: batch statistics shared by every layer that reads a feature map.

The batch mean and variance of a feature map do not depend on the layer that normalises it, so they
are computed once, where the map is made, and handed along the block.  Each layer keeps its own
scale, bias and running statistics: the network is the one of the paper (section 3), and only
O(L) instead of O(L^2) reductions remain.

A *layer* is a list of (norm, kernel) pairs, each norm a dict with `scale` and `bias`: two pairs
for a bottleneck layer (1x1, then 3x3), one pair for a plain layer (3x3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CONV_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Moments(NamedTuple):
    """Mean and biased variance of each channel over batch, height and width; [C] each, float32."""

    mean: jax.Array
    var: jax.Array

    def prefix(self, channels: int) -> "Moments":
        """Returns the moments of the first channels."""
        return Moments(self.mean[:channels], self.var[:channels])

    def extend(self, other: "Moments") -> "Moments":
        """Returns the moments of two feature maps concatenated along their channels."""
        return Moments(*(jnp.concatenate(pair) for pair in zip(self, other, strict=True)))


def at_least_float32(dtype) -> jnp.dtype:
    """Statistics and losses never have less than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def moments(x: jax.Array) -> Moments:
    """Returns the batch statistics of feature maps x [B, H, W, C], in one pass over x."""
    x = x.astype(at_least_float32(x.dtype))
    mean = x.mean((0, 1, 2))
    # E[x^2] - E[x]^2 can fall below 0 by rounding.
    return Moments(mean, jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0))


def affine(norm: dict, statistics: Moments, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns batch normalisation as (gain, shift): y = x * gain + shift."""
    gain = norm["scale"] * lax.rsqrt(statistics.var + epsilon)
    return gain, norm["bias"] - statistics.mean * gain


def norm_relu(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns relu(x * gain + shift), in x's type."""
    return jax.nn.relu(x * gain.astype(x.dtype) + shift.astype(x.dtype))


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves x [B, H, W, C] with an odd kernel [k, k, C, D], padded by k // 2 on every side."""
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])
    pads = [(k // 2, k // 2) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=CONV_LAYOUT
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements of x with probability `rate` and scales the others; no key: returns x."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def train(
    x: jax.Array,
    statistics: Moments,
    layers: list,
    *,
    epsilon: float,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Moments, list[Moments]]:
    """Applies a dense block, normalising with the batch's own statistics.

    Args:
      x: feature maps [B, H, W, C].
      statistics: the moments of x.
      layers: the block's layers (see above), each reading all maps before it.
      epsilon: added to each variance.
      dropout_rate: dropped after each convolution (paper, section 3, "Implementation Details").
      key: for dropout; None: no dropout.

    Returns:
      features [B, H, W, C + growth rate * len(layers)], their moments, and for each bottleneck
      layer in order the moments between its two convolutions (empty for plain layers).
    """
    inner = []
    for i, layer in enumerate(layers):
        y, y_statistics = x, statistics
        for j, (norm, kernel) in enumerate(layer):
            if j > 0:
                inner.append(y_statistics)
            y = convolve(norm_relu(y, *affine(norm, y_statistics, epsilon)), kernel)
            if key is not None:
                y = dropout(y, dropout_rate, jax.random.fold_in(key, len(layer) * i + j))
            y_statistics = moments(y)
        x = jnp.concatenate([x, y], axis=-1)
        statistics = statistics.extend(y_statistics)
    return x, statistics, inner


def evaluate(
    x: jax.Array, layers: list, *, dropout_rate: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """Applies a dense block with fixed statistics.

    Args:
      x: feature maps [B, H, W, C].
      layers: each a list of ((gain, shift), kernel) pairs.
      dropout_rate, key: as for `train`, where the statistics are frozen in training.

    Returns:
      features [B, H, W, C + growth rate * len(layers)].
    """
    for i, layer in enumerate(layers):
        keys = [None if key is None else jax.random.fold_in(key, 2 * i + j) for j in range(2)]
        ((gain, shift), kernel), *rest = layer
        y = norm_relu(x, gain, shift)
        for (gain, next_shift), next_kernel in rest:
            # The norm after a convolution is linear: its gain goes into the kernel.
            y = dropout(convolve(y, kernel * gain), dropout_rate, keys[0])
            y = jax.nn.relu(y + next_shift.astype(x.dtype))
            kernel = next_kernel
        x = jnp.concatenate([x, dropout(convolve(y, kernel), dropout_rate, keys[-1])], axis=-1)
    return x
