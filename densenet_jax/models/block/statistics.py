"""Batch normalisation in pieces: moments, the affine map they make, and the gradients of both.

Normalisation is y = gain * x + shift with gain = scale / sqrt(var + epsilon) and
shift = bias - mean * gain (Ioffe and Szegedy, 2015).  The moments of a feature map are computed
once, where the map is made; each layer that reads it computes `affine`, two numbers per channel.
"""

from collections.abc import Callable
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
    """Returns the type in which statistics and losses are computed: float32 or a wider one."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """Returns x with at least float32."""
    return x.astype(at_least_float32(x.dtype))


def sums(x: jax.Array, pivot: jax.Array | float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of x - pivot and of its squares, [C] each, in one pass over x.

    One pass is enough for mean and variance, but E[x^2] - E[x]^2 loses digits where the mean is
    much larger than the standard deviation: all of them at a ratio of 3000 in float32.  About a
    pivot near the mean nothing is lost (Chan et al., 1983).

    Args:
      x: feature maps [B, H, W, C].
      pivot: a value near each channel's mean, [C]; the same on all devices.
    """
    x = widen(x) - pivot
    return x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))


def moments_of_sums(
    total: jax.Array, squares: jax.Array, count: int, pivot: jax.Array | float = 0.0
) -> Moments:
    """Returns the moments of `count` values a channel from their sums about a pivot."""
    mean = total / count
    # The difference can fall below 0 by rounding.
    return Moments(pivot + mean, jnp.maximum(squares / count - mean * mean, 0))


def merged(parts: Moments) -> Moments:
    """Returns the moments of parts of equal size together, from those of each, [parts, C]."""
    mean = parts.mean.mean(0)
    return Moments(mean, parts.var.mean(0) + jnp.square(parts.mean - mean).mean(0))


def moments(x: jax.Array) -> Moments:
    """Returns the batch statistics of feature maps x [B, H, W, C], in one pass over x.

    The pivot is the value in the middle of the first map.
    """
    _, height, width, _ = x.shape
    # Sliced, not indexed: that would need sizes that are numbers, not symbols as in an export.
    middle = lax.slice_in_dim(x[:1], height // 2, height // 2 + 1, axis=1)
    middle = lax.slice_in_dim(middle, width // 2, width // 2 + 1, axis=2)
    pivot = lax.stop_gradient(widen(middle[0, 0, 0]))
    return moments_of_sums(*sums(x, pivot), positions(x), pivot)


def expected_input(
    gain: jax.Array,
    shift: jax.Array,
    source: Moments,
    function: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Returns the approximate mean of what a stage convolves, [C], from the moments of its input.

    `expected_output` makes the pivot of the output's sums of it, because it is known before the
    outputs, and on all devices without communication.  A normalised input z is taken as Gaussian,
    and the mean of f(z) is computed from three points (Gauss-Hermite).  This is exact if f is
    linear over the values of z.  Otherwise the mean of the outputs is not much larger than their
    standard deviation, and an approximate pivot is enough.

    Args:
      gain: of the normalisation, [C].
      shift: of the normalisation, [C].
      source: the moments of the input.
      function: the activation f.
    """
    mean, reach = source.mean * gain + shift, jnp.sqrt(3 * source.var) * jnp.abs(gain)
    return (4 * function(mean) + function(mean + reach) + function(mean - reach)) / 6


def expected_output(kernel: jax.Array, expected: jax.Array | None) -> jax.Array | float:
    """Returns the approximate mean of a stage's outputs, [D], from `expected_input`, or 0."""
    if expected is None:
        return 0.0
    return lax.stop_gradient(jnp.einsum("hwcd,c->d", kernel.astype(expected.dtype), expected))


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
