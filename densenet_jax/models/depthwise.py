"""Depthwise convolution that is fast on CPUs as well.

XLA has a fast depthwise convolution for accelerators; on a CPU its own takes some twenty times as
long as adding up shifted images, and its gradient is slower yet.  The platform chooses when the
program is lowered.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from densenet_jax.models.block.statistics import at_least_float32
from densenet_jax.models.derivatives import with_gradient
from densenet_jax.models.layers import he_normal


class Depthwise(nn.Module):
    """A size x size convolution of each channel with its own kernel and bias; keeps the shape."""

    size: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", he_normal, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return depthwise(x, kernel) + bias


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x [B, H, W, C] with an odd kernel [k, k, 1, C], padded by k // 2 on every side."""
    return _depthwise(x, kernel, None)[0]


def _forward(x, kernel, _):
    return lax.platform_dependent(x, kernel, cpu=_shift_and_add, default=_convolve), ()


def _backward(_, saved, gradient):
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=_shift_and_add_gradient,
        default=lambda x, kernel, g: jax.vjp(_convolve, x, kernel)[1](g),
    )


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = len(kernel) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _row(padded: jax.Array, i: jax.Array, height: int) -> jax.Array:
    """Returns `height` rows of the padded images from row i on."""
    return lax.dynamic_slice_in_dim(padded, i, height, axis=1)


def _padded(x: jax.Array, size: int) -> jax.Array:
    pad = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), pad, pad, (0, 0)))


def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    padded = _padded(x, len(kernel))

    def add_row(total, row):
        i, weights = row
        shifted = _row(padded, i, height)
        # Sliced, not indexed: that would gather where the batch is symbolic, in an export.
        parts = (lax.slice_in_dim(shifted, j, j + width, axis=2) for j in range(len(kernel)))
        return total + sum(part * w for part, w in zip(parts, weights, strict=True)), None

    return lax.scan(add_row, jnp.zeros_like(x), (jnp.arange(len(kernel)), kernel))[0]


def _shift_and_add_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    height, width = x.shape[1:3]
    padded, sum_type = _padded(x, len(kernel)), at_least_float32(x.dtype)

    def kernel_row(_, i):
        shifted = _row(padded, i, height)
        products = (shifted[:, :, j : j + width] * gradient for j in range(len(kernel)))
        return None, jnp.stack([p.sum((0, 1, 2), dtype=sum_type) for p in products])[:, None]

    kernel_gradient = lax.scan(kernel_row, None, jnp.arange(len(kernel)))[1]
    return _shift_and_add(gradient, kernel[::-1, ::-1]), kernel_gradient.astype(kernel.dtype)


_depthwise = with_gradient(_forward, _backward, lambda x, kernel, _: _convolve(x, kernel))
