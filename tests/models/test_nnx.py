"""The models as NNX modules, for those whose code is in NNX."""

import jax
import numpy as np
from flax import nnx

from densenet_jax.models.variants import create_model
from tests.random_variables import random_variables


def test_bridge_wraps_a_model_with_its_weights():
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    fields = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8}
    model = create_model("densenet121", num_classes=3, **fields)
    variables = random_variables(model)

    wrapped = nnx.bridge.ToNNX(model)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(wrapped, name, nnx.data(value))
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(wrapped, images), expected, rtol=1e-5)

    def loss(module, x):
        return module(x, train=True, mutable=["batch_stats"]).sum()

    before = np.asarray(wrapped.norm_final["mean"][...])
    gradients = nnx.jit(nnx.grad(loss))(wrapped, images)
    assert not np.array_equal(before, wrapped.norm_final["mean"][...])
    assert np.abs(gradients["classifier"]["kernel"][...]).max() > 0
