"""Batch normalisation in pieces: moments, the affine map they make, and the gradients of both.

Normalisation is y = gain * x + shift with gain = scale / sqrt(var + epsilon) and
shift = bias - mean * gain (Ioffe and Szegedy, 2015).  Whoever makes a feature map computes its
moments once; whoever reads it computes `affine`, a few numbers a channel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


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


def widen(x: jax.Array) -> jax.Array:
    """Returns x with at least float32."""
    return x.astype(at_least_float32(x.dtype))


def sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of x [B, H, W, C] and of its squares, [C] each, in one pass over x."""
    x = widen(x)
    return x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))


def moments_of_sums(total: jax.Array, squares: jax.Array, count: int) -> Moments:
    """Returns the moments of `count` values a channel."""
    mean = total / count
    # E[x^2] - E[x]^2 can fall below 0 by rounding.
    return Moments(mean, jnp.maximum(squares / count - mean * mean, 0))


def moments(x: jax.Array) -> Moments:
    """Returns the batch statistics of feature maps x [B, H, W, C], in one pass over x."""
    return moments_of_sums(*sums(x), positions(x))


def positions(x: jax.Array) -> int:
    """Returns how many values of x [B, H, W, C] a channel's statistics are taken over."""
    return x.shape[0] * x.shape[1] * x.shape[2]


def affine(norm: dict, statistics: Moments, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns batch normalisation as (gain, shift): y = x * gain + shift."""
    gain = norm["scale"] * lax.rsqrt(statistics.var + epsilon)
    return gain, norm["bias"] - statistics.mean * gain


def affine_gradients(
    norm: dict, statistics: Moments, epsilon: float, d_shift: jax.Array, d_gain: jax.Array
) -> tuple[dict, Moments]:
    """The transpose of `affine`, written out: [C] each.

    Args:
      norm, statistics, epsilon: as `affine` got them.
      d_shift: gradient of shift: the sum of dy over all positions.
      d_gain: gradient of gain: the sum of dy * x.

    Returns:
      The gradients of norm (its types) and of statistics.
    """
    r = lax.rsqrt(statistics.var + epsilon)
    d_gain = d_gain - statistics.mean * d_shift  # shift depends on gain, too
    d_norm = {"scale": d_gain * r, "bias": d_shift}
    d_norm = {name: d.astype(norm[name].dtype) for name, d in d_norm.items()}
    return d_norm, Moments(-norm["scale"] * r * d_shift, -0.5 * norm["scale"] * r * r * r * d_gain)


def moments_gradient(statistics: Moments, d: Moments, count: int) -> tuple[jax.Array, jax.Array]:
    """The transpose of `moments` as (a, b): dx = a + b * x, [C] each."""
    slope = 2 * d.var / count
    return d.mean / count - slope * statistics.mean, slope
