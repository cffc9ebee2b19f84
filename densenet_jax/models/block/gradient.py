"""A dense block in training mode, with its gradient written by hand.

Every layer's input is a prefix of the block's output.  So one buffer, filled in place, replaces the
chain of concatenations.  The backward pass keeps only this buffer and the bottlenecks, so memory
grows linearly with depth instead of quadratically.  It computes normalised inputs again.

In the backward pass the gradients of a map and of its moments are complete when all layers that
read the map have been visited.  The gradient of the moments is therefore applied only once, when
the layer that made the map is reached.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import find_activation
from densenet_jax.models.block import implementations, plain
from densenet_jax.models.block.statistics import (
    Moments,
    affine,
    affine_gradients,
    expected_input,
    moments_gradient,
    positions,
)
from densenet_jax.models.derivatives import with_gradient


class Settings(NamedTuple):
    """The options of a block, which do not depend on data."""

    epsilon: float
    dropout_rate: float  # 0: none
    implementation: str  # as `implementations.choose` returned it
    drop_path: tuple[float, ...] = ()  # of each layer; empty: none
    activation: str = "relu"  # see `models.activation`; kernels have ReLU

    def stage(self, function: str) -> Callable:
        """Returns `forward`, `backward` or `backward_together` of a stage."""
        found = getattr(implementations.find(self.implementation), function)
        if self.implementation in implementations.PLAIN_JAX:
            return functools.partial(found, activation=self.activation)
        return found

    def packed(self, layers: list, dtype: jax.typing.DTypeLike) -> list:
        """Returns the kernels of each layer as the stages read them, for maps of this type."""
        found = getattr(implementations.find(self.implementation), "packed", None)
        return found(layers, dtype) if found else [[w for _, w in layer] for layer in layers]

    def together(self, layers: list) -> int:
        """Returns how many layers add to the gradient of what all of them read in one pass."""
        found = getattr(implementations.find(self.implementation), "together", None)
        return found(layers[0][-1][1].shape[2]) if found else 1

    def add_gradients(
        self, source: jax.Array, readers: list, d_source: jax.Array, within: tuple[int, int]
    ) -> tuple[jax.Array, list]:
        """As `plain.backward_together`; one layer alone is the stage's `backward`."""
        if len(readers) > 1 or within[0]:
            return self.stage("backward_together")(source, readers, d_source, within)
        ((gain, shift, kernel, options),) = readers
        d_source, *found = self.stage("backward")(
            source, gain, shift, kernel, d_source=d_source, **options
        )
        return d_source, [found]

    def dropout(
        self, key: jax.Array | None, layer: int, convolution: int, convolutions: int
    ) -> plain.Dropout | None:
        """Returns the dropout after a convolution of a layer of the block, by their numbers."""
        last = convolution == convolutions - 1
        path_rate = self.drop_path[layer] if self.drop_path and last else 0.0
        if key is None or not (self.dropout_rate or path_rate):
            return None
        key = jax.random.fold_in(key, convolutions * layer + convolution)
        return plain.Dropout(self.dropout_rate, key, path_rate)


def block(x, statistics, layers, key, settings, transition=None):
    """`dense_block.train`; the inner moments it returns count as constants to differentiation."""
    (features, statistics), (bottlenecks,) = _block(
        x, statistics, transition, layers, key, settings
    )
    return features, statistics, [moments for _, moments in bottlenecks]


def forward(x, statistics, transition, layers, key, settings):
    """Returns features and their moments, and the bottlenecks, which `backward` needs, too."""
    if implementations.in_one_call(settings.implementation):
        assert transition is None
        stages = implementations.find(settings.implementation)
        results = stages.block_forward(x, statistics, layers, settings.epsilon)
    else:
        results = _forward(x, statistics, transition, layers, key, settings)
    features, statistics, bottlenecks = results
    return (features, statistics), (bottlenecks,)


def _forward(x, statistics, transition, layers, key, settings):
    def stage(source, moments, norm, kernel, **options):
        normalisation = affine(norm, moments, settings.epsilon)
        function = find_activation(settings.activation)
        options["expected"] = expected_input(*normalisation, moments, function)
        made, *found = settings.stage("forward")(source, *normalisation, kernel, **options)
        return made, Moments(*found)

    if transition is None:
        widened = getattr(implementations.find(settings.implementation), "widened", plain.widened)
        features, c = widened(x, layers), x.shape[3]
    else:
        options = {"pool": True, "room": plain.added(layers)}
        features, statistics = stage(x, statistics, *transition, **options)
        c = transition[1].shape[3]
    bottlenecks, kernels = [], settings.packed(layers, x.dtype)
    for i, layer in enumerate(layers):
        source, source_moments = features, statistics
        for j, (norm, _) in enumerate(layer):
            last = j == len(layer) - 1
            options = {"dropout": settings.dropout(key, i, j, len(layer))}
            options |= {"into": features, "offset": c} if last else {}
            read = source, source_moments, norm, kernels[i][j]
            source, source_moments = stage(*read, **options)
            if not last:
                bottlenecks.append((source, source_moments))
        features, statistics = source, statistics.extend(source_moments)
        c += layer[-1][1].shape[3]
    return features, statistics, bottlenecks


def backward(settings, residuals, cotangents):
    """Returns the gradients of x, statistics, transition and layers."""
    *residuals, before, transition, layers, key = residuals
    residuals = *residuals, layers
    d_features, d_statistics = cotangents
    if settings.implementation in implementations.PLAIN_JAX:
        # Behind a barrier XLA does not see that it computed normalised inputs before, and keeps
        # none.  Kernels never store them; what else is shared (vectors, casts) may be kept.
        residuals, d_features = lax.optimization_barrier((residuals, d_features))
    if implementations.in_one_call(settings.implementation):
        stages = implementations.find(settings.implementation)
        gradients = stages.block_backward(*residuals, d_features, d_statistics, settings.epsilon)
    else:
        gradients = _backward(*residuals, d_features, d_statistics, key, settings)
    d_features, d_statistics, d_layers = gradients
    c = d_features.shape[3] - plain.added(layers)
    d_statistics, d_transition = d_statistics.prefix(c), None
    if transition is None:
        dx = plain.channels(d_features, 0, c)
    else:
        (x, moments), (norm, kernel) = before, transition
        features, statistics = residuals[0], residuals[1].prefix(c)
        dx, d_kernel, *sums = settings.stage("backward")(
            x,
            *affine(norm, moments, settings.epsilon),
            kernel,
            pool=True,
            d_out=d_features,
            out=features,
            correction=moments_gradient(statistics, d_statistics, positions(features)),
        )
        d_norm, d_statistics = affine_gradients(norm, moments, settings.epsilon, *sums)
        d_transition = d_norm, d_kernel.astype(kernel.dtype)
    d_layers = jax.tree.map(lambda d, value: d.astype(value.dtype), d_layers, layers)
    return dx, d_statistics, d_transition, d_layers, None


def _backward(features, statistics, bottlenecks, layers, d_features, d_statistics, key, settings):
    n, growth, depth = positions(features), layers[0][-1][1].shape[3], len(layers)
    reads = [features.shape[3] - growth * (depth - i) for i in range(depth)]
    together, kernels = settings.together(layers), settings.packed(layers, features.dtype)
    readers, firsts, seconds = [()] * depth, {}, [[] for _ in layers]
    for i in reversed(range(depth)):
        c, first = reads[i], i - i % together
        # The moments of this map have no reader left: their gradient is complete.
        own = Moments(*(v[c : c + growth] for v in statistics))
        d_own = Moments(*(v[c : c + growth] for v in d_statistics))
        step = {"d_out": d_features, "out": features, "offset": c}
        step["correction"] = moments_gradient(own, d_own, n)
        if len(layers[i]) == 2:
            norm, (source, moments) = layers[i][1][0], bottlenecks[i]
            d_source, d_kernel, *sums = settings.stage("backward")(
                source,
                *affine(norm, moments, settings.epsilon),
                kernels[i][1],
                dropout=settings.dropout(key, i, 1, 2),
                **step,
            )
            d_norm, d_moments = affine_gradients(norm, moments, settings.epsilon, *sums)
            seconds[i] = [(d_norm, d_kernel)]
            step = {"d_out": d_source, "out": source}
            step["correction"] = moments_gradient(moments, d_moments, n)
        normalisation = affine(layers[i][0][0], statistics.prefix(c), settings.epsilon)
        step["dropout"] = settings.dropout(key, i, 0, len(layers[i]))
        readers[i] = (*normalisation, kernels[i][0], step)
        # The gradients of the maps that layers `first`, ..., i - 1 made are needed next.  To those
        # of all maps before, these layers add in one pass.
        start, end, adding = (reads[first], c, [i]) if i > first else (0, c, range(i, depth))
        adding = adding[:together]
        d_features, gradients = settings.add_gradients(
            features, [readers[k] for k in adding], d_features, (start, end)
        )
        found = []
        for k, (d_kernel, *sums) in zip(adding, gradients, strict=True):
            norm = {name: v[start:end] for name, v in layers[k][0][0].items()}
            moments = Moments(*(v[start:end] for v in statistics))
            d_norm, d_moments = affine_gradients(norm, moments, settings.epsilon, *sums)
            found.append((d_norm, d_kernel))
            pairs = zip(d_statistics, d_moments, strict=True)
            d_statistics = Moments(*(d.at[start:end].add(new.astype(d.dtype)) for d, new in pairs))
        if settings.implementation != "gpu":
            # Without a barrier XLA puts off the updates of d_features (and keeps every layer's
            # gradient until then) and the gradients of the kernels (and keeps their operands).
            made = d_features, found, seconds[i]
            d_features, found, seconds[i] = lax.optimization_barrier(made)
        for k, gradients in zip(adding, found, strict=True):
            # Those for the channels `start` ... come before those that were found first.
            firsts[k] = [gradients, *firsts.get(k, [])]
    stages = [[firsts[i], *([pair] for pair in seconds[i])] for i in range(depth)]
    return d_features, d_statistics, _joined(stages)


def _joined(layers: list) -> list:
    """Returns the gradients of each layer's stages from lists of pieces of them.

    Pieces are joined along the channels that a stage reads: vectors [C], kernels [1, 1, C, D].
    """
    if all(len(pieces) == 1 for layer in layers for pieces in layer):
        return [[pieces[0] for pieces in layer] for layer in layers]
    # All are parts of one array: XLA makes it in one GPU kernel, instead of one for each gradient.
    # The order is that of `optimizer.global_norm`, for which nothing has to be copied then.
    named = [
        {
            (name, j): jax.tree.map(lambda *parts: parts, *(piece[i] for piece in pieces))
            for j, pieces in enumerate(layer)
            for i, name in enumerate(("norm", "kernel"))
        }
        for layer in layers
    ]
    pieces, structure = jax.tree.flatten(named, is_leaf=lambda node: isinstance(node, tuple))
    flat = jnp.concatenate([part.reshape(-1) for parts in pieces for part in parts])
    flat, found, at = lax.optimization_barrier(flat), [], 0
    for parts in pieces:
        shape, axis = list(parts[0].shape), max(0, parts[0].ndim - 2)
        shape[axis] = sum(part.shape[axis] for part in parts)
        size = math.prod(shape)
        found.append(flat[at : at + size].reshape(shape))
        at += size
    joined = jax.tree.unflatten(structure, found)
    return [
        [(layer["norm", j], layer["kernel", j]) for j in range(len(layer) // 2)] for layer in joined
    ]


def _inputs(residuals):
    """Returns what `forward` was given; a block's own input is a prefix of its features."""
    features, statistics, _, before, transition, layers, key = residuals
    if transition is None:
        c = features.shape[3] - plain.added(layers)
        before = plain.channels(features, 0, c), statistics.prefix(c)
    return *before, transition, layers, key


def _keep(args, out, extra):
    """Returns what `backward` needs."""
    *before, transition, layers, key = args
    return *out, *extra, None if transition is None else before, transition, layers, key


def _plain(*args):
    """Returns `forward`'s results, computed by the plain stages."""
    features, statistics, bottlenecks = _forward(
        *args[:-1], args[-1]._replace(implementation="plain")
    )
    return (features, statistics), (bottlenecks,)


_block = with_gradient(
    forward,
    backward,
    lambda *args: _plain(*args)[0],
    portable=_plain,
    keep=_keep,
    inputs=_inputs,
)
