"""Gradients of convolutions: those of autodiff, and in an order that XLA:CPU is fast for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densenet_jax.models.block import dense_block
from densenet_jax.models.block.plain import convolve
from densenet_jax.models.convolution import LAYOUT, _summed_wide, gradients
from tests.models.block.test_dense_block import make_loss, problem


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (7, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("height", [8, 9])
def test_gradients_are_those_of_autodiff(size, stride, height):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, 11, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)

    def plain(x, kernel):
        strides, pads = (stride, stride), [(size // 2, size // 2)] * 2
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT)

    @jax.jit
    def both(x, kernel, dy):
        ours = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)[1](dy)
        return ours, _summed_wide(stride, x, kernel, dy), jax.vjp(plain, x, kernel)[1](dy)

    dy = jnp.asarray(rng.normal(size=plain(x, kernel).shape), jnp.float32)
    *ways, expected = both(x, kernel, dy)
    for way in ways:
        for a, b in zip(way, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_kernels_gradient_is_summed_over_devices_as_wide_as_statistics_are():
    """On a TPU, for which this only lowers; one all-reduce takes operands of one type."""
    x, dy = (jax.ShapeDtypeStruct((2, 8, 8, c), jnp.bfloat16) for c in (3, 5))
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.bfloat16)
    program = jax.jit(gradients).trace(x, kernel, dy).lower(lowering_platforms=("tpu",)).as_text()
    assert re.search(r"stablehlo.convolution.*-> tensor<3x3x3x5xf32>", program)


def test_in_a_loop_every_convolution_is_in_the_order_that_has_a_fast_kernel():
    _, layers, weights = problem((2, 8, 8, 3), 1, 4, 2, jnp.float32)
    block = make_loss(dense_block.train, weights)

    def step(parameters, x):
        stem, layers = parameters
        y, pull = jax.vjp(lambda stem: convolve(x, stem, 2), stem)
        _, (dy, d_layers) = block(y, layers)
        return jax.tree.map(jnp.subtract, parameters, (*pull(dy), d_layers)), None

    stem, images = jnp.ones((3, 3, 3, 3)), jnp.ones((2, 2, 16, 16, 3))
    steps = jax.jit(lambda parameters, images: lax.scan(step, parameters, images)[0])
    program = steps.lower((stem, layers), images).compile().as_text()
    orders = re.findall(r"convolution\(.*dim_labels=([^ ,}]+)", program)
    assert len(orders) >= 5  # three convolutions; images need no gradient
    assert set(orders) == {"b01f_01io->b01f"}
