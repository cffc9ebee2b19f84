"""What RDNet has and a DenseNet has not: depthwise convolutions, gates, drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import depthwise, rdnet
from densenet_jax.models.variants import create_model
from tests.random_variables import random_variables

TINY = {
    "block_sizes": (2, 2),
    "growth_rates": (8, 16),
    "stem_features": 16,
    "halving": (1,),
    "gated_from": 1,
    "num_classes": 3,
    "layer_scale": 0.5,
}


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.fixture(scope="module")
def variables():
    return random_variables(create_model("rdnet_tiny", **TINY))


def train(variables, key, x, **fields):
    model = create_model("rdnet_tiny", **{**TINY, **fields})
    return jax.jit(lambda k: model.apply(variables, x, train=True, rngs={"dropout": k}))(key)


def test_shifted_sums_are_the_convolution_and_its_gradient():
    with jax.enable_x64(True):
        x, kernel = normal(2, 6, 5, 3, dtype="f8"), normal(5, 5, 1, 3, dtype="f8")
        gradient = normal(2, 6, 5, 3, dtype="f8")
        expected, pullback = jax.vjp(depthwise._convolve, x, kernel)
        ours, our_pullback = jax.vjp(depthwise.depthwise, x, kernel)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        for a, b in zip(our_pullback(gradient), pullback(gradient), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11)


def test_depthwise_in_bfloat16_sums_its_gradient_in_float32():
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    _, gradient = jax.grad(lambda *a: depthwise.depthwise(*a).sum(), (0, 1))(x, kernel)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[1, 1, 0, 0]) == 64 * 64


def test_hard_sigmoid_has_pytorch_s_values_and_slope():
    x = jnp.array([-4.0, -3.0, -1.0, 0.0, 2.0, 3.0, 5.0])
    np.testing.assert_allclose(rdnet.hard_sigmoid(x), [0, 0, 1 / 3, 0.5, 5 / 6, 1, 1], rtol=1e-6)
    slopes = jax.vmap(jax.grad(rdnet.hard_sigmoid))(x)
    np.testing.assert_array_equal(slopes, np.float32([0, 0, 1, 1, 1, 0, 0]) * np.float32(1 / 6))


def test_drop_path_grows_from_nothing_to_its_rate():
    rates = create_model("rdnet_small").drop_paths()
    assert len(rates) == 33
    assert rates[0] == 0
    assert rates[-1] == 0.35
    np.testing.assert_allclose(np.diff(rates), 0.35 / 32)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("tiny", 0.15), ("small", 0.35), ("base", 0.4), ("large", 0.5)],
)
def test_drop_path_of_the_variants(name, rate):
    assert create_model(f"rdnet_{name}").drop_path_rate == rate


def test_drop_path_drops_whole_images_with_its_probability(variables):
    """Equal images come out alike unless one lost a layer; on average nothing changes."""
    x = np.repeat(normal(1, 16, 16, 3), 256, 0)
    kept = train(variables, jax.random.key(1), x, drop_path_rate=0.0)
    np.testing.assert_allclose(kept, kept[:1] + 0 * kept, rtol=1e-4)
    dropped = train(variables, jax.random.key(1), x, drop_path_rate=0.3)
    # Four layers, with rates 0, 0.1, 0.2 and 0.3: a share of 0.9 * 0.8 * 0.7 has all of them.
    different = np.unique(np.round(np.asarray(dropped), 4), axis=0)
    assert 2 < len(different) <= 8
    again = train(variables, jax.random.key(1), x, drop_path_rate=0.3)
    np.testing.assert_array_equal(dropped, again)
    other = train(variables, jax.random.key(2), x, drop_path_rate=0.3)
    assert not np.array_equal(dropped, other)


def test_evaluation_drops_nothing(variables):
    model = create_model("rdnet_tiny", **TINY)
    assert model.drop_path_rate == 0.15
    x = normal(2, 16, 16, 3)
    logits = jax.jit(model.apply)(variables, x)
    kept = train(variables, jax.random.key(0), x, drop_path_rate=0.0)
    np.testing.assert_allclose(logits, kept, rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_rate(variables):
    x = normal(2, 16, 16, 3)
    kept = train(variables, jax.random.key(0), x, drop_path_rate=0.0)
    dropped = train(variables, jax.random.key(0), x, drop_path_rate=0.0, dropout_rate=0.3)
    assert not np.allclose(kept, dropped)


def test_bfloat16_keeps_the_head_in_float32(variables):
    x = normal(2, 16, 16, 3)
    model = create_model("rdnet_tiny", **TINY)
    half = model.clone(dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)(variables, x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), atol=0.05)
    stages = jax.eval_shape(lambda: half.apply(variables, x, method="features"))
    assert stages["final"].dtype == jnp.bfloat16


def test_only_later_blocks_have_gates(variables):
    assert "gate" not in variables["params"]["stage0"]["layer0"]
    assert "gate" in variables["params"]["stage1"]["layer0"]


def test_one_growth_rate_for_each_block():
    with pytest.raises(ValueError, match="growth_rates has 7 numbers and block_sizes 2"):
        create_model("rdnet_tiny", block_sizes=(1, 2)).init(jax.random.key(0), normal(1, 64, 64, 3))
