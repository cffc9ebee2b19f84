"""The arithmetic of a dense block: batch statistics shared by every layer that reads a feature map.

The batch mean and variance of a feature map do not depend on the layer that normalises it, so they
are computed once, where the map is made, and passed along the block.  Each layer keeps its own
scale, bias and running statistics.  So the network is the one of the paper (section 3), but needs
O(L) instead of O(L^2) reductions.

A *layer* is a list of (norm, kernel) pairs, each norm a dict with `scale` and `bias`: two pairs
for a bottleneck layer (1x1, then 3x3), one pair for a plain layer (3x3).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import find_activation, norm_act
from densenet_jax.models.block import gradient, implementations, plain, reference
from densenet_jax.models.block.plain import (
    channels,
    convolve,
    dropout,
    widened,
    write_channels,
)
from densenet_jax.models.block.statistics import Moments, moments, positions
from densenet_jax.models.derivatives import with_gradient
from densenet_jax.models.plan import BlockPlan
from densenet_jax.models.pooling import average_pool


def train(
    x: jax.Array,
    statistics: Moments,
    layers: list,
    *,
    transition: tuple | None = None,
    epsilon: float,
    dropout_rate: float = 0.0,
    drop_path: Sequence[float] = (),
    key: jax.Array | None = None,
    implementation: str = "auto",
    activation: str = "relu",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[jax.Array, Moments, list[Moments]]:
    """Applies a dense block, normalising with the batch's own statistics.

    Args:
      x: feature maps [B, H, W, C].
      statistics: the moments of x.
      layers: the block's layers (see above), each reading all maps before it.
      transition: the (norm, kernel) of a transition before the block, which halves x; the first
        layer reads what it makes.  None: it reads x.  See `joins_transition`.
      epsilon: added to each variance.
      dropout_rate: dropped after each convolution (paper, section 3, "Implementation Details").
      drop_path: probability, for each layer, that it adds zeros to an image (Huang et al., 2016:
        stochastic depth); the moments are those of what it adds.  Empty: never.
      key: for both; None: nothing is dropped.
      implementation: see `implementations`.
      activation: name of the function after each norm, see `models.activation`.
      dtype: of the network, see `implementations.computed_type`.

    Returns:
      features [B, H, W, C + growth rate * len(layers)], their moments, and for each bottleneck
      layer in order the moments between its two convolutions (empty for plain layers).  The last
      are constants to differentiation: they feed running statistics only.
    """
    rate, drop_path = (0.0, ()) if key is None else (dropout_rate, tuple(drop_path))
    dropped = max(rate, *drop_path, 0.0)
    read = _read(x, transition)
    implementation = implementations.choose(
        implementation, read, layers, dropped, activation, dtype
    )
    settings = gradient.Settings(epsilon, rate, implementation, drop_path, activation)
    if implementation == "reference":
        return _reference(x, layers, key, settings)
    return gradient.block(x, statistics, layers, key, settings, transition)


def joins_transition(
    x: jax.Array,
    transition: tuple,
    layers: list,
    train: bool,
    dropped: float = 0.0,
    implementation: str = "auto",
    activation: str = "relu",
) -> str | None:
    """Returns the implementation whose kernels also compute what is before a block; None: none.

    `train` and `evaluate` take a transition, `evaluate` and `stem.train` a stem.

    Args:
      x: what the transition or the stem reads, [B, H, W, C].
      transition, layers: as for `train` or `evaluate`.
      train: which of the two.
      dropped: the largest rate of dropout or drop path.
      implementation, activation: as for `train`.
    """
    read = _read(x, transition)
    chosen = implementations.choose(implementation, read, layers, dropped, activation)
    if chosen in implementations.CPU:
        return None if train or not layers or _is_stem(transition) else chosen
    if not implementations.has_pooled_stage(chosen):
        return None
    # A stem's convolution has four times as many positions as the stem; see `choose`.
    fits = not _is_stem(transition) or 4 * positions(read) * read.shape[3] < 2**31
    return chosen if fits else None


def _read(x: jax.Array, transition: tuple | None) -> Any:
    """Returns the type of what the first layer of a block reads."""
    if transition is None:
        return x
    size: Any = x.shape[1:3]
    halved = [(n + 3) // 4 if _is_stem(transition) else n // 2 for n in size]
    return jax.ShapeDtypeStruct((x.shape[0], *halved, transition[1].shape[3]), x.dtype)


def _is_stem(transition: tuple) -> bool:
    return transition[1].shape[:2] != (1, 1)


def _reference(x, layers, key, settings):
    def dropout(i, j, y):
        dropped = settings.dropout(key, i, j, len(layers[i]))
        return y if dropped is None else dropped(y)

    args = (settings.epsilon, settings.activation, dropout)
    features, statistics = reference.train(x, layers, *args)
    inner = [Moments(*layer[1]) for layer in statistics if len(layer) == 2]
    return features, moments(features), lax.stop_gradient(inner)


def evaluate(
    x: jax.Array,
    layers: list,
    *,
    transition: tuple | None = None,
    dropout_rate: float = 0.0,
    drop_path: Sequence[float] = (),
    key: jax.Array | None = None,
    implementation: str = "auto",
    activation: str = "relu",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Applies a dense block with fixed statistics.

    Args:
      x: feature maps [B, H, W, C].
      layers: each a list of ((gain, shift), kernel) pairs.
      transition: as for `train`, with a pair like those of layers; or those of a stem, whose
        kernel is [7, 7, C, D]: see `plain.stem`.
      dropout_rate, drop_path, key: as for `train`, where the statistics are frozen in training.
      implementation, activation, dtype: as for `train`.

    Returns:
      features [B, H, W, C + growth rate * len(layers)].
    """
    rate, drop_path = (0.0, ()) if key is None else (dropout_rate, tuple(drop_path))
    dropped = max(rate, *drop_path, 0.0)
    read = _read(x, transition)
    implementation = implementations.choose(
        implementation, read, layers, dropped, activation, dtype
    )
    if implementation in (*implementations.PLAIN_JAX, "reference"):
        return _evaluate(x, layers, None, rate, key, drop_path, activation)
    return _evaluate_with_kernels(x, layers, transition, implementation)[0]


def prepare(
    x: Any,
    layers: list,
    implementation: str,
    activation: str,
    dtype: jax.typing.DTypeLike = jnp.float32,
    transition: tuple | None = None,
) -> Any:
    """Returns what `evaluate_prepared` takes, or None where nothing is to be prepared.

    The CPU kernels read weights in the order of their products, which they otherwise bring about in
    each call.

    Args:
      x: the block's input or its type; of its shape only the batch size matters.
      layers, implementation, activation, dtype, transition: as for `evaluate`.
    """
    implementation = implementations.choose(implementation, x, layers, 0.0, activation, dtype)
    if implementation not in implementations.CPU or not layers:
        return None
    return implementations.find(implementation).pack(layers, transition)


def evaluate_prepared(
    x: jax.Array,
    prepared: Any,
    plan: BlockPlan,
    implementation: str,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Returns what `evaluate` does, from what `prepare` returned; without derivatives.

    Raises:
      ValueError: they were prepared for products in another type, or for another processor.
    """
    stages = implementations.find(implementations.on_cpu(implementation, dtype))
    if not stages.are_packed(prepared):
        raise ValueError(
            "The variables are prepared for another type or processor; begin with the variables "
            "that were given to `prepare`, and prepare them again."
        )
    return stages.evaluate_packed(x, prepared, plan)


def _evaluate(
    x, layers, transition=None, dropout_rate=0.0, key=None, drop_path=(), activation="relu"
):
    if transition is not None:
        (gain, shift), kernel = transition
        if _is_stem(transition):
            x = plain.stem(x, gain, shift, kernel, activation=activation)
        else:
            x = convolve(average_pool(norm_act(x, gain, shift, activation)), kernel)
    features, c = widened(x, layers), x.shape[3]
    for i, layer in enumerate(layers):
        keys = [None if key is None else jax.random.fold_in(key, 2 * i + j) for j in range(2)]
        ((gain, shift), kernel), *rest = layer
        y = norm_act(channels(features, 0, c), gain, shift, activation)
        for (gain, next_shift), next_kernel in rest:
            # The norm after a convolution is linear: its gain goes into the kernel.
            y = dropout(convolve(y, kernel * gain), dropout_rate, keys[0])
            y = find_activation(activation)(y + next_shift.astype(x.dtype))
            kernel = next_kernel
        path_rate = drop_path[i] if drop_path else 0.0
        y = dropout(convolve(y, kernel), dropout_rate, keys[-1], path_rate)
        features = write_channels(features, y, c)
        c += kernel.shape[3]
    return features


# Training with frozen statistics differentiates the plain implementation.
_evaluate_with_kernels = with_gradient(
    lambda *args: (implementations.find(args[-1]).evaluate(*args[:-1]), ()),
    lambda how, residuals, d_features: jax.vjp(_evaluate, *residuals)[1](d_features),
    lambda *args: _evaluate(*args[:-1]),
    portable=lambda *args: (_evaluate(*args[:-1]), ()),
)
