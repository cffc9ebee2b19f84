"""The dense block against a short reference that automatic differentiation handles.

The reference is what dense_block.train means: statistics of every map computed where it is made,
concatenations, no thought of memory.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import dense_block
from densenet_jax.models.dense_block import affine, convolve, moments, norm_relu

EPSILON = 1e-5


def reference(x, statistics, layers, *, epsilon, dropout_rate=0.0, key=None):
    inner = []
    for i, layer in enumerate(layers):
        y, y_statistics = x, statistics
        for j, (norm, kernel) in enumerate(layer):
            if j > 0:
                inner.append(y_statistics)
            y = convolve(norm_relu(y, *affine(norm, y_statistics, epsilon)), kernel)
            if key is not None:
                stage_key = jax.random.fold_in(key, len(layer) * i + j)
                y = dense_block.dropout(y, dropout_rate, stage_key)
            y_statistics = moments(y)
        x = jnp.concatenate([x, y], axis=-1)
        statistics = statistics.extend(y_statistics)
    return x, statistics, inner


def make_layers(rng, depth, channels, growth, bottleneck, dtype):
    """Random layers as `dense_block.train` takes them."""

    def norm(c):
        return {
            "scale": jnp.asarray(rng.uniform(0.5, 1.5, c), dtype),
            "bias": jnp.asarray(rng.normal(0, 0.5, c), dtype),
        }

    def kernel(k, c, d):
        return jnp.asarray(rng.normal(0, (2 / (k * k * c)) ** 0.5, (k, k, c, d)), dtype)

    layers = []
    for _ in range(depth):
        if bottleneck:
            width = bottleneck * growth
            pairs = [(norm(channels), kernel(1, channels, width))]
            pairs += [(norm(width), kernel(3, width, growth))]
        else:
            pairs = [(norm(channels), kernel(3, channels, growth))]
        layers.append(pairs)
        channels += growth
    return layers


def make_loss(block, weights, **kwargs):
    """A scalar that depends on features and on their moments, as the next layer's norm would."""

    def loss(x, layers):
        features, statistics, inner = block(x, moments(x), layers, epsilon=EPSILON, **kwargs)
        y = norm_relu(features, *affine({"scale": 1.0, "bias": 0.1}, statistics, EPSILON))
        return (y.astype(jnp.float32 if y.dtype != jnp.float64 else y.dtype) * weights).sum(), inner

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def problem(shape, depth, growth, bottleneck, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(0.3, 1, shape), dtype)
    layers = make_layers(rng, depth, shape[3], growth, bottleneck, dtype)
    weights = rng.normal(0, 1, (*shape[:3], shape[3] + depth * growth))
    return x, layers, weights


@pytest.mark.parametrize(("bottleneck", "rate"), [(4, 0.0), (0, 0.0), (4, 0.2), (0, 0.2)])
def test_gradient_matches_automatic_differentiation(bottleneck, rate):
    with jax.enable_x64(True):
        x, layers, weights = problem((2, 5, 6, 7), 3, 4, bottleneck, jnp.float64)
        kwargs = {"dropout_rate": rate, "key": jax.random.key(3)} if rate else {}
        expected = make_loss(reference, weights, **kwargs)(x, layers)
        actual = make_loss(dense_block.train, weights, **kwargs)(x, layers)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), actual, expected
        )
