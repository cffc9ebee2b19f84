"""A dense block as the paper defines it, in plain JAX, differentiated by JAX: start reading here.

Layer l applies H_l (batch normalisation, activation, convolution, once or twice) to the
concatenation of everything before it: x_l = H_l([x_0, x_1, ..., x_{l-1}])  (Huang et al., 2017,
section 3, equation 2).  `implementation="reference"` runs this; the other implementations compute
the same numbers faster, and tests compare every one of them with this (docs/how.md derives them).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import find_activation


def train(
    x: jax.Array,
    layers: list[list[tuple[dict[str, jax.Array], jax.Array]]],
    epsilon: float,
    activation: str = "relu",
    dropout: Callable[[int, int, jax.Array], jax.Array] = lambda layer, convolution, y: y,
) -> tuple[jax.Array, list[list[tuple[jax.Array, jax.Array]]]]:
    """Applies a block, normalising with the batch's own statistics.

    Args:
      x: feature maps [B, H, W, C].
      layers: for each layer its convolutions in order, each ({"scale": [C], "bias": [C]}, kernel
        [k, k, C, D]); a bottleneck layer has two (k = 1, then 3), a plain layer one (k = 3).
      epsilon: added to each variance.
      activation: name in `models.activation.ACTIVATIONS`.
      dropout: maps (layer, convolution, output of that convolution) to what is kept of it.

    Returns:
      The block's features [B, H, W, C + sum of all D of last convolutions], and for each
      layer, for each of its convolutions, the (mean [C], variance [C]) that normalised its input.
    """
    f = find_activation(activation)
    statistics: list[list[tuple[jax.Array, jax.Array]]] = []
    for i, layer in enumerate(layers):
        y = x
        statistics.append([])
        for j, (norm, kernel) in enumerate(layer):
            wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
            mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
            statistics[i].append((mean, var))
            z = (wide - mean) * lax.rsqrt(var + epsilon) * norm["scale"] + norm["bias"]
            y = dropout(i, j, convolve(f(z).astype(x.dtype), kernel))
        x = jnp.concatenate([x, y], axis=-1)
    return x, statistics


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [k, k, C, D], zeros around it, stride 1."""
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
