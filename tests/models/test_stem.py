"""The stem with TensorFlow's padding, compared with its definition."""

import jax
import numpy as np
import pytest
from jax import lax

from densenet_jax import create_model
from densenet_jax.models.stem import norm_act_same_max_pool, same_convolution
from tests.random_variables import random_variables


def padding(size, window):
    """Returns zeros before and after, for windows of stride 2, as TensorFlow defines "same"."""
    total = max((-(-size // 2) - 1) * 2 + window - size, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("size", [8, 9])
def test_the_same_padding(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, size, size + 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(7, 7, 3, 4)).astype(np.float32)
    around = [padding(size, 7), padding(size + 1, 7)]
    numbers = ("NHWC", "HWIO", "NHWC")
    wanted = lax.conv_general_dilated(x, kernel, (2, 2), around, dimension_numbers=numbers)
    y, moments = same_convolution(x, kernel, 2)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(moments.mean, wanted.mean((0, 1, 2)), atol=1e-5)

    gain, shift = rng.normal(size=(2, 3)).astype(np.float32)
    u = np.maximum(x * gain + shift, 0)
    edges = [(0, 0), padding(size, 3), padding(size + 1, 3), (0, 0)]
    padded = np.pad(u, edges, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    pooled = norm_act_same_max_pool(x, gain, shift, "relu")
    np.testing.assert_allclose(pooled, windows.max((-1, -2)), atol=1e-6)


def test_only_even_sizes_differ_from_the_usual_stem():
    fields = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 3}
    usual = create_model("densenet121", **fields)
    variables = random_variables(usual)
    for size, same in ((33, True), (32, False)):
        x = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
        models = usual, usual.clone(stem="imagenet_same")
        one, other = (jax.jit(model.apply)(variables, x) for model in models)
        assert np.allclose(one, other, atol=1e-5) == same
