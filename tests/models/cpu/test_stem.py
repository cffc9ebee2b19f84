"""The CPU kernels outside of dense blocks against their plain twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import pooling, stem
from densenet_jax.models.block import implementations
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu import stem as cpu_stem
from tests.models.gpu.test_stages import Arrays, assert_close


@pytest.fixture(autouse=True)
def compiler():
    if not library.available():
        pytest.skip("no C++ compiler")


# Images, channels, kernel size, stride, features.
CONVOLUTIONS = {
    "ImageNet": ((2, 37, 40), 3, 7, 2, 64),  # rows and columns: odd and even, and two strips
    "CIFAR": ((3, 6, 5), 3, 3, 1, 10),
    "deep": ((1, 9, 8), 32, 3, 2, 70),  # a kernel's row, and the result, longer than a chunk
    "a pixel": ((2, 1, 1), 1, 7, 2, 5),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(case):
    image, c, size, stride, d = case
    arrays = Arrays(jnp.float32)
    x, kernel, weights = arrays.maps(*image, c), arrays.kernel(size, size, c, d), arrays.vectors(d)

    def run(twin):
        def loss(x, kernel):
            y, moments = twin(x, kernel, stride)
            value = (y**3).mean() + (weights[0] * moments.mean + weights[1] * moments.var).sum()
            return value, (y, moments)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel))

    assert_close(run(cpu_stem.measured_convolution), run(stem.measured_convolution), jnp.float32)


@pytest.mark.parametrize("pool", ["norm_act_max_pool", "norm_act_average_pool"])
@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (2, 7, 9, 70), (1, 3, 2, 16)], ids=str)
def test_pooling(shape, pool):
    arrays = Arrays(jnp.float32)
    # Rounded, so that windows have equal values: the gradient goes to the first of them.
    x = arrays.maps(*shape).round(1)
    x = x.at[0].add(-4)  # whole windows that the ReLU makes 0
    vectors = arrays.vectors(shape[-1])

    def run(twin):
        pooled = jax.jit(lambda *arrays: twin(*arrays, "relu"))
        y, transpose = jax.vjp(pooled, x, *vectors)
        return y, *transpose(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    expected = run(getattr(pooling, pool))
    assert_close(run(getattr(cpu_stem, pool)), expected, jnp.float32)


def test_over_devices():
    """A batch in parts: sums over all of them, and no change to anything else."""
    arrays = Arrays(jnp.float32)
    x, kernel = arrays.maps(8, 6, 6, 3), arrays.kernel(3, 3, 3, 8)

    @jax.jit
    def run(x, kernel):
        def loss(kernel):
            y, moments = cpu_stem.measured_convolution(x, kernel, 1)
            return (cpu_stem.norm_act_max_pool(y, *moments, "relu") ** 2).sum() + moments.var.sum()

        return jax.value_and_grad(loss)(kernel)

    expected = run(x, kernel)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        actual = run(jax.device_put(x, jax.P("data")), kernel)
    assert_close(actual, expected, jnp.float32)


def test_twins_are_chosen_where_they_apply():
    x, plain = jnp.zeros((1, 4, 4, 8)), pooling.norm_act_max_pool
    twin = cpu_stem.norm_act_max_pool
    assert implementations.around_blocks(plain, "cpu", x) is twin
    assert implementations.around_blocks(plain, "plain", x) is plain
    assert implementations.around_blocks(plain, "auto", x) is plain  # 8 devices, no mesh
    assert implementations.around_blocks(plain, "cpu", x.astype(jnp.bfloat16)) is plain
    assert implementations.around_blocks(stem.blur_pool, "cpu", x) is stem.blur_pool


def test_numbers_that_are_none_stay_so():
    x, kernel = jnp.ones((2, 5, 5, 3)).at[1, 2, 2, 0].set(jnp.nan), jnp.ones((3, 3, 3, 4))
    y, moments = stem.measured_convolution(x, kernel, 1)
    assert np.isnan(y[1, 1:4, 1:4]).all()
    assert np.isnan(y).sum() == 9 * 4
    assert np.isnan(moments.mean).all()
