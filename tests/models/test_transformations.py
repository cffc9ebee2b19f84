"""Transformations of JAX on every implementation, against `reference`, which JAX differentiates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax

from densenet_jax.models.block.implementations import around_blocks
from densenet_jax.models.depthwise import depthwise
from densenet_jax.models.pooling import norm_act_average_pool, norm_act_max_pool
from densenet_jax.models.stem import measured_convolution
from densenet_jax.models.variants import create_model

IMPLEMENTATIONS = ("reference", "plain", "cpu", "interpreted")
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)


def network(implementation):
    return create_model(
        "densenet121",
        block_sizes=(1,),
        growth_rate=2,
        stem_features=4,
        num_classes=3,
        implementation=implementation,
    )


@functools.cache
def variables():
    """Variables with biases that keep activations away from the kink of ReLU, and a direction."""
    found = jax.eval_shape(network("plain").init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    fill = {"scale": (1, 0.2), "bias": (0, 0.5), "kernel": (0, 0.3), "mean": (0, 0.1)}

    def value(path, leaf):
        if path[-1].key == "var":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(*fill[path[-1].key], leaf.shape).astype(np.float32)

    filled = jax.tree_util.tree_map_with_path(value, found)
    direction = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), filled["params"]
    )
    return filled, direction


@pytest.mark.parametrize(
    ("implementation", "train"),
    [("reference", False), ("plain", True), ("cpu", True), ("interpreted", False)],
)
def test_derivatives_agree(implementation, train):
    """First derivatives along one direction are equal however they are made, and so are second."""
    model, (found, direction) = network(implementation), variables()
    params = found["params"]

    def loss(params, images=IMAGES):
        logits = model.apply(
            {**found, "params": params}, images, train=train, mutable=["batch_stats"]
        )[0]
        return (jnp.sin(logits) * jnp.arange(6.0).reshape(2, 3)).sum()

    def along(tree):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(direction), strict=True)
        return sum((a * b).sum() for a, b in pairs)

    @jax.jit
    def derivatives(params):
        def gradient(params):
            return along(jax.grad(loss)(params))

        first, second = jax.jvp(gradient, (params,), (direction,))  # forward over reverse
        forward = jax.linearize(loss, params)[1](direction)
        mapped = jax.vmap(lambda x: along(jax.grad(loss)(params, x)))(IMAGES[None])[0]
        return first, forward, mapped, second, along(jax.grad(gradient)(params))

    first, forward, mapped, second, reverse = derivatives(params)
    np.testing.assert_allclose([forward, mapped], first, rtol=1e-4)
    np.testing.assert_allclose(second, reverse, rtol=1e-3, atol=1e-2)
    expected = EXPECTED[train]
    np.testing.assert_allclose(first, expected[0], rtol=1e-4)
    np.testing.assert_allclose(second, expected[1], rtol=1e-3, atol=1e-2)


# train -> first and second derivative of `reference` in float64, the second by differences.
EXPECTED = {True: (8.597274394, 51.956505), False: (21.452950869, 1913.39038)}


@pytest.mark.parametrize("kernels", ["plain", "cpu", "tpu"])
def test_pooling_and_convolution_have_every_derivative(kernels):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(1, 5, 6, 8)), jnp.float32)
    gain, shift = (jnp.asarray(rng.normal(size=8), jnp.float32) for _ in range(2))
    for function, plainly in (
        (norm_act_max_pool, lambda u: nn.max_pool(u, (3, 3), (2, 2), ((1, 1), (1, 1)))),
        (norm_act_average_pool, lambda u: nn.avg_pool(u, (2, 2), (2, 2))),
    ):
        chosen = around_blocks(function, kernels, x)
        assert_equal_derivatives(
            lambda *a, chosen=chosen: chosen(*a, "relu"),
            lambda x, gain, shift, pool=plainly: pool(jax.nn.relu(x * gain + shift)),
            (x, gain, shift),
        )
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 4)), jnp.float32)
    chosen = around_blocks(measured_convolution, kernels, x)
    around = {"window_strides": (2, 2), "padding": [(1, 1)] * 2}
    around["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    assert_equal_derivatives(
        lambda x, kernel: chosen(x, kernel, 2)[0],
        lambda x, kernel: lax.conv_general_dilated(x, kernel, **around),
        (x, kernel),
    )


def test_depthwise_convolution_has_every_derivative():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(1, 5, 6, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32)
    around = {"window_strides": (1, 1), "padding": [(1, 1)] * 2, "feature_group_count": 4}
    around["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    assert_equal_derivatives(
        depthwise, lambda x, kernel: lax.conv_general_dilated(x, kernel, **around), (x, kernel)
    )


def assert_equal_derivatives(function, plainly, args):
    """Compares jvp, its reverse, and the reverse of the gradient with those that JAX makes."""

    def derivatives(function):
        def loss(*args):
            return jnp.sin(function(*args)).sum()

        def slope(*args):
            return jax.jvp(loss, args, args)[1]

        def squares(*args):
            gradients = jax.grad(loss, range(len(args)))(*args)
            return sum((g * g).sum() for g in gradients)

        return slope(*args), jax.grad(slope)(*args), jax.grad(squares)(*args)

    found, expected = (jax.jit(lambda f=f: derivatives(f))() for f in (function, plainly))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("implementation", ["auto", "cpu", "plain", "reference"])
def test_a_model_is_exported_by_hand_for_any_batch_and_size(implementation):
    model, (found, _) = network(implementation), variables()
    for shape, limits in (("2, 8, 8, 3", ()), ("b, h, w, 3", ("h >= 8", "w >= 8"))):
        images = jax.ShapeDtypeStruct(export.symbolic_shape(shape, constraints=limits), jnp.float32)
        exported = export.export(jax.jit(model.apply))(found, images)
        called = export.deserialize(bytearray(exported.serialize())).call
        np.testing.assert_allclose(
            called(found, IMAGES), model.apply(found, IMAGES), atol=1e-5, rtol=1e-5
        )


def test_shapes_are_evaluated_and_modules_have_names():
    found, _ = variables()
    for implementation in IMPLEMENTATIONS:
        model = network(implementation)
        assert jax.eval_shape(model.apply, found, IMAGES).shape == (2, 3)
    assert create_model("densenet121", name="encoder").name == "encoder"
