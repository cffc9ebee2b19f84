"""Batch statistics of maps whose mean is much larger than their standard deviation.

PyTorch's batch normalisation is right to about 5e-5 at a ratio of 3000 in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import stem
from densenet_jax.models.block import dense_block, implementations, statistics
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu import stem as cpu_stem

RATIOS = (1, 10, 100, 1000, 3000)


def maps(ratio, shape=(8, 14, 14, 16), dtype=np.float32):
    return (ratio + np.random.default_rng(0).normal(size=shape)).astype(dtype)


def assert_variance(found, values):
    expected = values.astype(np.float64).reshape(-1, values.shape[-1]).var(0)
    np.testing.assert_allclose(found, expected, rtol=5e-4)


@pytest.mark.parametrize("ratio", RATIOS)
def test_moments(ratio):
    x = maps(ratio)
    found = jax.jit(statistics.moments)(x)
    assert_variance(found.var, x)
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)


def test_the_pivot_does_not_change_the_gradient():
    with jax.enable_x64(True):
        x, weights = jnp.asarray(maps(3, dtype=np.float64)), jnp.arange(16.0)

        def loss(x, moments):
            found = moments(x)
            return (weights * (found.mean + 2 * found.var)).sum()

        def two_passes(x):
            return statistics.Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))

        actual, expected = (jax.grad(loss)(x, m) for m in (statistics.moments, two_passes))
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("convolution", [stem.measured_convolution, cpu_stem.measured_convolution])
def test_the_stems_convolution_of_images_that_are_not_centred(convolution, ratio):
    if convolution is cpu_stem.measured_convolution and not library.available():
        pytest.skip("no C++ compiler")
    x = maps(ratio, (4, 20, 20, 3))
    kernel = np.zeros((3, 3, 3, 8), np.float32)
    kernel[1, 1] = np.random.default_rng(1).uniform(0.2, 1, (3, 8))
    y, found = jax.jit(convolution, static_argnums=2)(x, kernel, 2)
    assert_variance(found.var, np.asarray(y))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("implementation", ["plain", "interpreted", "cpu"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_outputs_of_a_stage(implementation, size, ratio):
    """A norm whose bias is much larger than its scale makes such outputs."""
    x = maps(0, (4, 8, 8, 16))
    gain, shift = jnp.ones(16), jnp.full(16, float(ratio))
    kernel = np.zeros((size, size, 16, 8), np.float32)
    kernel[size // 2, size // 2] = np.random.default_rng(1).uniform(0.2, 1, (16, 8))
    moments = statistics.moments(x)
    expected = statistics.expected_input(gain, shift, moments, jax.nn.relu)
    stage = implementations.find(implementation)
    into = {} if size == 1 else {"into": jnp.zeros((4, 8, 8, 8))}
    y, mean, var = stage.forward(x, gain, shift, kernel, expected=expected, **into)
    assert_variance(var, np.asarray(y))
    np.testing.assert_allclose(mean, np.asarray(y, np.float64).mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("implementation", ["plain", "interpreted", "cpu"])
def test_a_block(implementation):
    x = maps(2000, (4, 6, 6, 16))
    norm = {"scale": jnp.ones(16), "bias": jnp.full(16, 500.0)}
    second = {"scale": jnp.ones(8), "bias": jnp.full(8, 500.0)}
    rng = np.random.default_rng(1)
    layer = [
        (norm, jnp.asarray(rng.uniform(0.2, 1, (1, 1, 16, 8)), jnp.float32)),
        (second, jnp.zeros((3, 3, 8, 4)).at[1, 1].set(rng.uniform(0.2, 1, (8, 4)))),
    ]
    features, found, inner = dense_block.train(
        x, statistics.moments(x), [layer], epsilon=1e-5, implementation=implementation
    )
    assert_variance(found.var, np.asarray(features))
    assert np.isfinite(inner[0].var).all()
