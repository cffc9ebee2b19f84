"""Modules that own parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from densenet_jax.models.layers import he_normal


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (1, 1, 8, 16), (5, 5, 1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_are_drawn_as_flax_draws_them(shape, dtype):
    expected = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    found = he_normal(jax.random.key(3), shape, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected(jax.random.key(3), shape, dtype))
