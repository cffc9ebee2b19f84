"""Numbers that go wrong are seen; parameters of another type than the computation work."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax import create_model
from densenet_jax.models import pooling
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu import stem as cpu_stem
from tests.random_variables import random_variables

TINY = {"block_sizes": (1, 2), "growth_rate": 4, "stem_features": 8, "num_classes": 3}
IMPLEMENTATIONS = ("reference", "plain", "cpu")


@pytest.mark.parametrize("pool", [pooling.norm_act_max_pool, cpu_stem.norm_act_max_pool])
@pytest.mark.parametrize("place", [(0, 0), (2, 2), (3, 1), (4, 4)], ids=str)
def test_a_window_with_nan_is_nan_forwards_and_backwards(pool, place):
    if pool is cpu_stem.norm_act_max_pool and not library.available():
        pytest.skip("no C++ compiler")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 3)), jnp.float32)
    broken = x.at[0, *place, 1].set(jnp.nan)
    ones, zeros = jnp.ones(3), jnp.zeros(3)
    # JAX's own maximum lets NaN win, too.
    expected = jax.lax.reduce_window(
        jnp.maximum(broken, 0),
        -jnp.inf,
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    assert np.isnan(expected).any()
    y, transpose = jax.vjp(lambda *a: pool(*a, "relu"), broken, ones, zeros)
    np.testing.assert_allclose(y, expected)
    _, d_gain, _ = transpose(jnp.ones_like(y))
    assert np.isnan(d_gain[1])
    assert np.isfinite(d_gain[::2]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("train", [False, True])
def test_a_stem_of_nan_gives_logits_of_nan(implementation, train):
    model = create_model("densenet121", **TINY, implementation=implementation)
    variables = random_variables(model)
    variables["params"]["conv0"]["kernel"] = variables["params"]["conv0"]["kernel"] * jnp.nan
    run = jax.jit(lambda v, x: model.apply(v, x, train, mutable=["batch_stats"])[0])
    logits = run(variables, jnp.ones((2, 32, 32, 3)))
    assert np.isnan(logits).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("freeze", [False, True])
def test_parameters_of_a_narrower_type(implementation, freeze):
    options = {"implementation": implementation, "freeze_statistics": freeze}
    model = create_model("densenet121", **TINY, param_dtype=jnp.bfloat16, **options)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), images)

    def loss(params):
        given = {**variables, "params": params}
        return (model.apply(given, images, True, mutable=["batch_stats"])[0] ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}


def test_training_without_mutable_statistics_is_refused():
    model = create_model("densenet121", **TINY)
    variables, images = random_variables(model), jnp.ones((2, 32, 32, 3))
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, images)
    frozen = model.clone(freeze_statistics=True)
    assert jax.jit(lambda v, x: frozen.apply(v, x, train=True))(variables, images).shape == (2, 3)


def test_one_value_a_channel_is_refused():
    model = create_model("densenet121", **{**TINY, "block_sizes": (1, 1, 1, 1)})
    variables = random_variables(model)

    def trace(*shape):
        train = lambda v, x: model.apply(v, x, True, mutable=["batch_stats"])  # noqa: E731
        jax.eval_shape(train, variables, jax.ShapeDtypeStruct(shape, jnp.float32))

    with pytest.raises(ValueError, match=r"one value per channel to train on .*larger batch_size"):
        trace(1, 32, 32, 3)
    trace(1, 64, 64, 3)
    trace(2, 32, 32, 3)
