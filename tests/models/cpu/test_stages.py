"""The CPU kernels against their plain twins in `stages`."""

import chex
import jax
import jax.numpy as jnp
import pytest

from densenet_jax.models.block import dense_block, implementations, plain
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu.stages import Stages
from densenet_jax.models.pooling import norm_act_average_pool
from tests.models.gpu.test_stages import Arrays, assert_close, layers

STAGES = Stages()
# Images, channels of the buffer, channels read, bottleneck width, growth rate.
CASES = {
    "narrow": ((2, 5, 3), 27, 20, 12, 5),  # less than a vector, a panel, a tile and a chunk
    "one image": ((1, 9, 17), 170, 133, 72, 37),  # a few more than a chunk, and strips of an image
    "CIFAR": ((3, 8, 8), 80, 60, 48, 12),
    "ImageNet": ((2, 14, 14), 160, 128, 128, 32),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    if not library.available():
        pytest.skip("no C++ compiler")
    return request.param


def test_forward(case):
    image, channels, c, d, growth = case
    arrays = Arrays(jnp.float32)
    x, z = arrays.maps(*image, channels), arrays.maps(*image, d)
    for stage in (
        (x, *arrays.vectors(c), arrays.kernel(1, 1, c, d)),
        (z, *arrays.vectors(d), arrays.kernel(3, 3, d, growth)),
    ):
        where = {} if stage[0] is x else {"into": x, "offset": c}
        actual = STAGES.forward(*stage, **where)
        assert_close(actual, plain.forward(*stage, **where), jnp.float32)


def test_numbers_that_are_none_stay_so(case):
    image, channels, c, d, _ = case
    arrays = Arrays(jnp.float32)
    x = arrays.maps(*image, channels).at[0, 1, 1, c - 1].set(jnp.nan)
    out, total, _ = STAGES.forward(x, *arrays.vectors(c), arrays.kernel(1, 1, c, d))
    assert jnp.isnan(out[0, 1, 1]).all()
    assert jnp.isnan(total).all()
    assert jnp.isnan(out).sum() == d  # and nowhere else


def test_backward(case):
    image, channels, c, d, growth = case
    arrays = Arrays(jnp.float32)
    x, dx = (arrays.maps(*image, channels) for _ in range(2))
    z, dz = (arrays.maps(*image, d) for _ in range(2))
    stage = (x, *arrays.vectors(c), arrays.kernel(1, 1, c, d))
    step = {"d_out": dz, "out": z, "correction": arrays.vectors(d), "d_source": dx}
    assert_close(STAGES.backward(*stage, **step), plain.backward(*stage, **step), jnp.float32)
    stage = (z, *arrays.vectors(d), arrays.kernel(3, 3, d, growth))
    step = {"d_out": dx, "out": x, "correction": arrays.vectors(growth), "offset": c}
    assert_close(STAGES.backward(*stage, **step), plain.backward(*stage, **step), jnp.float32)


def test_choice():
    x, bottleneck = jnp.zeros((1, 4, 4, 8)), layers((1, 1, 8, 4), (3, 3, 4, 2))
    here = "cpu" if library.available() else "plain"
    assert implementations.choose("cpu", x, bottleneck, 0.0) == here
    assert implementations.choose("auto", x, bottleneck, 0.0) == "plain"  # 8 devices, no mesh
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        assert implementations.choose("auto", x, bottleneck, 0.0) == "plain"  # 1 image on 8 devices
        eight = jnp.zeros((8, *x.shape[1:]))
        assert implementations.choose("auto", eight, bottleneck, 0.0) == here
    assert implementations.choose("cpu", x, bottleneck, 0.1) == "plain"
    plain_layers = layers((3, 3, 8, 2))
    assert implementations.choose("cpu", x, plain_layers, 0.0) == here
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):  # sums of several devices: stage by stage
        assert implementations.choose("cpu", eight, plain_layers, 0.0) == "plain"
    assert implementations.choose("cpu", x.astype(jnp.bfloat16), bottleneck, 0.0) == "plain"


def test_results_repeat_to_the_bit():
    arrays = Arrays(jnp.float32)
    x, z, dz = arrays.maps(2, 28, 28, 64), arrays.maps(2, 28, 28, 64), arrays.maps(2, 28, 28, 64)
    stage = (x, *arrays.vectors(64), arrays.kernel(1, 1, 64, 64))
    if not library.available():
        pytest.skip("no C++ compiler")

    @jax.jit
    def run():
        return STAGES.backward(*stage, d_out=dz, out=z, correction=arrays.vectors(64), d_source=x)

    first = run()
    for _ in range(20):
        chex.assert_trees_all_equal(run(), first)


def test_evaluation_has_the_plain_gradient():
    """Frozen statistics in training: the gradient is that of the plain twin."""
    arrays = Arrays(jnp.float32)
    x = arrays.maps(2, 4, 4, 8)
    frozen = [
        [
            (arrays.vectors(8), arrays.kernel(1, 1, 8, 8)),
            (arrays.vectors(8), arrays.kernel(3, 3, 8, 4)),
        ]
    ]

    def loss(implementation):
        def of(x):
            return (dense_block.evaluate(x, frozen, implementation=implementation) ** 2).sum()

        return jax.jit(jax.value_and_grad(of))(x)

    assert_close(jax.tree.leaves(loss("cpu")), jax.tree.leaves(loss("plain")), jnp.float32)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_block_in_evaluation(case, bottleneck):
    image, _, c, d, growth = case
    arrays = Arrays(jnp.float32)
    block = [
        [
            (arrays.vectors(width), arrays.kernel(1, 1, width, d)),
            (arrays.vectors(d), arrays.kernel(3, 3, d, growth)),
        ]
        if bottleneck
        else [(arrays.vectors(width), arrays.kernel(3, 3, width, growth))]
        for width in (c, c + growth)
    ]
    nothing = STAGES.evaluate(jnp.zeros((0, *image[1:], c)), block)
    assert nothing.shape == (0, *image[1:], c + 2 * growth)
    (gain, shift), kernel = transition = arrays.vectors(c + 3), arrays.kernel(1, 1, c + 3, c)
    height, width = image[1:]
    for images in (image[0], 96):  # threads share an image, or have images of their own
        x = arrays.maps(images, height, width, c)
        expected = dense_block.evaluate(x, block, implementation="plain")
        assert_close([STAGES.evaluate(x, block)], [expected], jnp.float32)
        larger = arrays.maps(images, 2 * height + 1, 2 * width, c + 3)  # an odd line is left out
        pooled = norm_act_average_pool(larger, gain, shift, "relu")
        expected = dense_block.evaluate(
            plain.convolve(pooled, kernel), block, implementation="plain"
        )
        assert_close([STAGES.evaluate(larger, block, transition)], [expected], jnp.float32)
