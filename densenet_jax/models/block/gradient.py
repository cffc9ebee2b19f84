"""A dense block in training mode, with its gradient written by hand.

Every layer's input is a prefix of the block's output.  So one buffer, filled in place, replaces the
chain of concatenations, and it is, with the bottlenecks, all that the backward pass keeps: memory
grows with depth, not with its square.  Normalised inputs are computed again where they are needed.

In the backward pass a map's gradient is complete when all its readers have been visited, and so is
the gradient of its moments; the latter is applied once, when the map's own layer is reached.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

from densenet_jax.models.activation import find_activation
from densenet_jax.models.block import implementations, plain
from densenet_jax.models.block.statistics import (
    Moments,
    affine,
    affine_gradients,
    expected_output,
    moments_gradient,
    moments_of_sums,
    positions,
)
from densenet_jax.models.cpu import stages
from densenet_jax.models.derivatives import with_gradient


class Settings(NamedTuple):
    """What does not depend on data."""

    epsilon: float
    dropout_rate: float  # 0: none
    implementation: str  # as `implementations.choose` returned it
    drop_path: tuple[float, ...] = ()  # of each layer; empty: none
    activation: str = "relu"  # see `models.activation`; kernels have ReLU

    def stage(self, function: str) -> Callable:
        """Returns `forward` or `backward` of a stage."""
        found = getattr(implementations.find(self.implementation), function)
        if self.implementation in implementations.PLAIN_JAX:
            return functools.partial(found, activation=self.activation)
        return found

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


def block(x, statistics, layers, key, settings):
    """`dense_block.train`; the inner moments it returns count as constants to differentiation."""
    (features, statistics), (bottlenecks,) = _block(x, statistics, layers, key, settings)
    return features, statistics, [moments for _, moments in bottlenecks]


def forward(x, statistics, layers, key, settings):
    """Returns features and their moments, and the bottlenecks, which `backward` needs, too."""
    if implementations.in_one_call(settings.implementation):
        results = stages.block_forward(x, statistics, layers, settings.epsilon)
    else:
        results = _forward(x, statistics, layers, key, settings)
    features, statistics, bottlenecks = results
    return (features, statistics), (bottlenecks,)


def _forward(x, statistics, layers, key, settings):
    c, n = x.shape[3], positions(x)
    widened = getattr(implementations.find(settings.implementation), "widened", plain.widened)
    features = widened(x, layers)
    bottlenecks = []
    for i, layer in enumerate(layers):
        source, source_moments = features, statistics
        for j, (norm, kernel) in enumerate(layer):
            last = j == len(layer) - 1
            normalisation = affine(norm, source_moments, settings.epsilon)
            function = find_activation(settings.activation)
            pivot = expected_output(kernel, *normalisation, source_moments, function)
            source, *sums = settings.stage("forward")(
                source,
                *normalisation,
                kernel,
                pivot=pivot,
                dropout=settings.dropout(key, i, j, len(layer)),
                **({"into": features, "offset": c} if last else {}),
            )
            source_moments = moments_of_sums(*sums, n, pivot)
            if not last:
                bottlenecks.append((source, source_moments))
        features, statistics = source, statistics.extend(source_moments)
        c += kernel.shape[3]
    return features, statistics, bottlenecks


def backward(settings, residuals, cotangents):
    """Returns the gradients of x, statistics and layers."""
    *residuals, key = residuals
    d_features, d_statistics = cotangents
    if settings.implementation in implementations.PLAIN_JAX:
        # Behind a barrier XLA does not see that it computed normalised inputs before, and keeps
        # none.  Kernels never store them; what else is shared (vectors, casts) may be kept.
        residuals, d_features = lax.optimization_barrier((residuals, d_features))
    if implementations.in_one_call(settings.implementation):
        gradients = stages.block_backward(*residuals, d_features, d_statistics, settings.epsilon)
    else:
        gradients = _backward(*residuals, d_features, d_statistics, key, settings)
    d_features, d_statistics, d_layers = gradients
    layers = residuals[-1]
    c = d_features.shape[3] - plain.added(layers)
    d_layers = jax.tree.map(lambda d, value: d.astype(value.dtype), d_layers, layers)
    return plain.channels(d_features, 0, c), d_statistics.prefix(c), d_layers, None


def _backward(features, statistics, bottlenecks, layers, d_features, d_statistics, key, settings):
    n, growth = positions(features), layers[0][-1][1].shape[3]
    gradients = [None] * len(layers)
    for i in reversed(range(len(layers))):
        c = features.shape[3] - growth * (len(layers) - i)
        # The moments of this map have no reader left: their gradient is complete.
        own = Moments(*(v[c : c + growth] for v in statistics))
        d_own = Moments(*(v[c : c + growth] for v in d_statistics))
        step = {"d_out": d_features, "out": features, "offset": c}
        step["correction"] = moments_gradient(own, d_own, n)
        d_layer = [None] * len(layers[i])
        for j in reversed(range(len(layers[i]))):
            norm, kernel = layers[i][j]
            source, moments = bottlenecks[i] if j else (features, statistics.prefix(c))
            d_source, d_kernel, *sums = settings.stage("backward")(
                source,
                *affine(norm, moments, settings.epsilon),
                kernel,
                d_source=None if j else d_features,
                dropout=settings.dropout(key, i, j, len(layers[i])),
                **step,
            )
            d_norm, d_moments = affine_gradients(norm, moments, settings.epsilon, *sums)
            d_layer[j] = (d_norm, d_kernel)
            step = {"d_out": d_source, "out": source}
            step["correction"] = moments_gradient(moments, d_moments, n)
        # Without a barrier XLA puts off the updates of d_features (and keeps every layer's
        # gradient until then) and the gradients of the kernels (and keeps their operands).
        d_features, gradients[i] = lax.optimization_barrier((d_source, d_layer))
        pairs = zip(d_statistics, d_moments, strict=True)
        d_statistics = Moments(*(d.at[:c].add(new.astype(d.dtype)) for d, new in pairs))
    return d_features, d_statistics, gradients


def _inputs(residuals):
    """Returns what `forward` was given: its input is a prefix of the features."""
    features, statistics, _, layers, key = residuals
    c = features.shape[3] - plain.added(layers)
    return plain.channels(features, 0, c), statistics.prefix(c), layers, key


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
    keep=lambda args, out, extra: (*out, *extra, *args[2:]),
    inputs=_inputs,
)
