"""The activation functions, applied after a normalisation, and their gradients.

Batch normalisation is an affine map of each channel (`block.statistics.affine`), so a layer
computes y = f(x * gain + shift) before its convolution.  This module defines f, that map, and its
transpose.  JAX differentiates f: to add or change an activation, edit only `ACTIVATIONS`.

The kernels for GPUs and CPUs have ReLU compiled in.  `is_relu` tells whether an entry still is
ReLU; `block.implementations` falls back to plain JAX for all others.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.models.block.statistics import widen
from densenet_jax.models.inputs import check_name

# Functions of one array, element by element, that JAX can differentiate.  `gelu` is the exact one
# (with the error function) and `leaky_relu` has slope 0.01 below 0, as in PyTorch and timm.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
}


def find_activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns an entry of `ACTIVATIONS`.

    Raises:
      ValueError: there is none of this name; the message lists the names.
    """
    check_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def is_relu(name: str) -> bool:
    """Returns whether an entry of `ACTIVATIONS` computes ReLU; it is tried on a few numbers."""
    return _computes_relu(find_activation(name))


@functools.cache
def _computes_relu(function: Callable[[jax.Array], jax.Array]) -> bool:
    numbers = np.array([-30.0, -3.5, -1.0, -0.25, 0.0, 0.25, 1.0, 3.5, 30.0], np.float32)
    with jax.ensure_compile_time_eval():
        values = np.asarray(function(jnp.asarray(numbers)))
    return np.array_equal(values, np.maximum(numbers, 0))


def norm_act(x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str) -> jax.Array:
    """Returns f(x * gain + shift), computed in at least float32, in the type of x.

    Args:
      x: feature maps [B, H, W, C].
      gain, shift: the normalisation of each channel, [C] each.
      activation: the name of f in `ACTIVATIONS`.
    """
    return find_activation(activation)(widen(x) * gain + shift).astype(x.dtype)


def act_gradient(
    x: jax.Array, gain: jax.Array, shift: jax.Array, dy: jax.Array, activation: str
) -> jax.Array:
    """Returns the gradient of z = x * gain + shift, given the gradient `dy` of f(z).

    All arrays broadcast against [B, H, W, C]; the result has at least float32.
    """
    z = widen(x) * gain + shift
    (dz,) = jax.vjp(find_activation(activation), z)[1](dy.astype(z.dtype))
    return dz


def norm_act_gradients(
    x: jax.Array, gain: jax.Array, shift: jax.Array, dy: jax.Array, activation: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The transpose of `norm_act`: returns the gradients of x (its type), gain and shift.

    Args:
      x, gain, shift, activation: as `norm_act` got them.
      dy: the gradient of its result, [B, H, W, C].
    """
    dz = act_gradient(x, gain, shift, dy, activation)
    d_gain, d_shift = (dz * widen(x)).sum((0, 1, 2)), dz.sum((0, 1, 2))
    return (dz * gain).astype(x.dtype), d_gain, d_shift
