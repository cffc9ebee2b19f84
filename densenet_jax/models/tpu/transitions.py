"""Pooling in the forms that XLA:TPU fuses, in plain JAX (see `stages`).

A TPU has a unit for windows, so the maximum over windows and its gradient are XLA's own.  The
average pooling and the 1x1 convolution of a transition are one convolution with a 2x2 kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import act_gradient, norm_act, norm_act_gradients
from densenet_jax.models.block import plain
from densenet_jax.models.derivatives import with_gradient
from densenet_jax.models.pooling import norm_act_average_pool
from densenet_jax.models.tpu import stages

LAYOUT = ("NHWC", "HWIO", "NHWC")


def norm_act_max_pool(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> jax.Array:
    """As `pooling.norm_act_max_pool`."""
    return _maxima(x, gain, shift, activation)[0]


def _maximum(u):
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(u, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)


def _maximum_forward(x, gain, shift, activation):
    return _maximum(norm_act(x, gain, shift, activation))


def _maximum_backward(activation, residuals, dy):
    (x, gain, shift), dy = lax.optimization_barrier((residuals, dy))
    (du,) = jax.vjp(_maximum, norm_act(x, gain, shift, activation))[1](dy)
    dx, d_gain, d_shift = norm_act_gradients(x, gain, shift, du, activation)
    return dx, d_gain.astype(gain.dtype), d_shift.astype(shift.dtype)


_maxima = with_gradient(
    lambda *args: (_maximum_forward(*args), ()), _maximum_backward, _maximum_forward
)


def pooled_convolution(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str, kernel: jax.Array
) -> jax.Array:
    """Returns the 1x1 convolution of `pooling.norm_act_average_pool(x, gain, shift, activation)`.

    Args:
      x: [B, H, W, C].
      gain, shift: [C] each.
      activation: name of f in `models.activation`.
      kernel: [1, 1, C, D].
    """
    return _pooled(x, gain, shift, kernel, activation)[0]


def _convolved(u, kernel):
    wide = jnp.broadcast_to((kernel / 4).astype(u.dtype), (2, 2, *kernel.shape[2:]))
    return lax.conv_general_dilated(u, wide, (2, 2), "VALID", dimension_numbers=LAYOUT)


def _pooled_forward(x, gain, shift, kernel, activation):
    return _convolved(norm_act(x, gain, shift, activation), kernel), ()


def _pooled_backward(activation, residuals, dy):
    # Behind a barrier XLA cannot share what the forward pass computed: it would have to store it.
    (x, gain, shift, kernel), dy = lax.optimization_barrier((residuals, dy))
    sums = stages.gradients_of_parameters(x, gain, shift, kernel[0, 0] / 4, dy, activation)
    (du,) = jax.vjp(lambda u: _convolved(u, kernel), x)[1](dy)
    dz = act_gradient(x, gain, shift, du, activation)
    d_kernel, *others = (
        d.astype(v.dtype) for d, v in zip(sums, (kernel, gain, shift), strict=True)
    )
    return (dz * gain).astype(x.dtype), *others, d_kernel[None, None] / 4


def _pooled_twin(x, gain, shift, kernel, activation):
    return plain.convolve(norm_act_average_pool(x, gain, shift, activation), kernel)


_pooled = with_gradient(_pooled_forward, _pooled_backward, _pooled_twin)
