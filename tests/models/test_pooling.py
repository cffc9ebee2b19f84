"""BN-ReLU-pooling and its gradient by hand, against automatic differentiation of Flax's pooling."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from densenet_jax.models import pooling
from densenet_jax.models.activation import ACTIVATIONS, norm_act
from densenet_jax.models.tpu import transitions

KERNEL = np.random.default_rng(1).normal(size=(1, 1, 3, 5))  # of the convolution behind a pooling
POOLINGS = {
    "max": (
        pooling.norm_act_max_pool,
        lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ),
    "max, TPU": (
        transitions.norm_act_max_pool,
        lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ),
    "average": (pooling.norm_act_average_pool, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
    "average, TPU": (
        lambda *args: transitions.pooled_convolution(*args, kernel=KERNEL),
        lambda x: nn.avg_pool(x, (2, 2), (2, 2)) @ KERNEL[0, 0],
    ),
}


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_flax(name, size, activation):
    pool, reference = POOLINGS[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        # Rounded, so that windows have equal values: the gradient goes to the first of them.
        x = rng.normal(size=(3, *size, 3)).round(1)
        x[0] -= 4  # whole windows that the ReLU makes 0, though their channel's shift is positive
        x = jnp.asarray(x)
        gain, shift = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.6, 0.3, -0.2])
        weights = rng.normal(size=reference(x).shape)

        def value_and_gradients(pool):
            def loss(*args):
                return (pool(*args) * weights).sum()

            return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, gain, shift)

        actual = value_and_gradients(lambda *args: pool(*args, activation))
        expected = value_and_gradients(lambda *args: reference(norm_act(*args, activation)))
        chex.assert_trees_all_close(actual, expected, rtol=1e-12, atol=1e-12)
