"""Each stage of each implementation against `jax.vjp` of the same stage of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import activation
from densenet_jax.models.block import implementations, reference
from densenet_jax.models.cpu import library
from densenet_jax.models.pooling import average_pool

# Images, channels of the source's buffer, channels read, channels made.
SHAPES = {
    "one image, odd": ((1, 5, 7), 21, 13, 9),
    "one position": ((1, 1, 1), 8, 8, 5),
    "a few images": ((3, 4, 3), 40, 33, 17),
}
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 3e-2}


def reference_stage(function, x, gain, shift, kernel, pool=False):
    """Returns the stage's output and the sums of its values and squares."""
    z = x.astype(jnp.float32) * gain + shift
    y = reference.convolve(activation.find_activation(function)(z).astype(x.dtype), kernel)
    y = average_pool(y) if pool else y
    wide = y.astype(jnp.float32)
    return y, wide.sum((0, 1, 2)), (wide * wide).sum((0, 1, 2))


def moments(y):
    wide = np.asarray(y, np.float64)
    return wide.mean((0, 1, 2)), wide.var((0, 1, 2))


def close(actual, expected, dtype):
    for a, b in zip(actual, expected, strict=True):
        b = np.asarray(b, np.float32)
        difference = np.abs(np.asarray(a, np.float32).reshape(b.shape) - b).max()
        assert difference <= TOLERANCE[dtype] * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("implementation", "function"),
    [(i, f) for i in implementations.PLAIN_JAX for f in activation.ACTIVATIONS]
    + [("interpreted", "relu"), ("cpu", "relu")],
)
def test_stage_and_its_transpose(implementation, function, shape, size, dtype):
    if implementation == "cpu" and (dtype != jnp.float32 or not library.available()):
        pytest.skip("the CPU kernels are for float32, and need a C++ compiler")
    image, buffered, c, d = shape
    rng = np.random.default_rng(0)

    def maps(channels):
        return jnp.asarray(rng.normal(size=(*image, channels)), dtype)

    def vector(size):
        return jnp.asarray(rng.normal(size=size), jnp.float32)

    # A 1x1 stage reads a prefix of the block's buffer and makes an array of its own; a 3x3 stage
    # reads all of such an array and writes into the buffer.
    source = maps(buffered if size == 1 else c)
    gain, shift = vector(c), vector(c)
    kernel = jnp.asarray(rng.normal(0, 0.2, (size, size, c, d)), jnp.float32)
    d_y, constant, slope = maps(d), vector(d), vector(d)
    stage = implementations.find(implementation)
    options = {"activation": function} if implementation in implementations.PLAIN_JAX else {}
    x = source[..., :c]

    def expected_forward(x, gain, shift, kernel):
        return reference_stage(function, x, gain, shift, kernel)

    expected, transpose = jax.vjp(expected_forward, x, gain, shift, kernel)
    # The sums' gradients are (constant, slope / 2): y gets d_y + constant + slope * y.
    dx, d_gain, d_shift, d_kernel = transpose((d_y, constant, slope / 2))
    if size == 1:
        d_source = maps(buffered)
        actual = stage.forward(source, gain, shift, kernel, **options)
        back = {"d_out": d_y, "out": expected[0], "d_source": d_source}
        dx = d_source.at[..., :c].add(dx)
        expected = expected[0], *moments(expected[0])
    else:
        into = maps(buffered + d)
        actual = stage.forward(source, gain, shift, kernel, into=into, offset=buffered, **options)
        out, made = into.at[..., buffered:].set(expected[0]), expected[0]
        expected = out, *moments(made)
        d_out = maps(buffered + d).at[..., buffered:].set(d_y)
        back = {"d_out": d_out, "out": out, "offset": buffered}
    close(actual, expected, dtype)
    gradients = stage.backward(
        source, gain, shift, kernel, correction=(constant, slope), **back, **options
    )
    close(gradients, (dx, d_kernel, d_shift, d_gain), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("image", [(2, 5, 6), (1, 2, 9)], ids=str)
@pytest.mark.parametrize(
    ("implementation", "function"), [("plain", "silu"), ("plain", "relu"), ("interpreted", "relu")]
)
def test_transition_and_its_transpose(implementation, function, image, dtype):
    """A stage that halves the maps; the reference pools after the convolution, as in the paper."""
    (c, d, room), rng = (21, 9, 4), np.random.default_rng(0)
    half = image[0], image[1] // 2, image[2] // 2

    def maps(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def vector(size):
        return jnp.asarray(rng.normal(size=size), jnp.float32)

    x, gain, shift = maps(*image, c), vector(c), vector(c)
    kernel = jnp.asarray(rng.normal(0, 0.2, (1, 1, c, d)), jnp.float32)

    def expected_forward(*args):
        return reference_stage(function, *args, pool=True)

    (y, *_), transpose = jax.vjp(expected_forward, x, gain, shift, kernel)
    d_out, correction = maps(*half, d + room), (vector(d), vector(d))
    dx, d_gain, d_shift, d_kernel = transpose((d_out[..., :d], correction[0], correction[1] / 2))
    stage = implementations.find(implementation)
    options = {"pool": True}
    if implementation in implementations.PLAIN_JAX:
        options["activation"] = function
    out, *found = stage.forward(x, gain, shift, kernel, room=room, **options)
    assert out.shape == d_out.shape
    made = out[..., :d]
    close((made, *found), (y, *moments(made)), dtype)
    out = out.at[..., :d].set(y)
    options |= {"d_out": d_out, "out": out, "correction": correction}
    gradients = stage.backward(x, gain, shift, kernel, **options)
    close(gradients, (dx, d_kernel, d_shift, d_gain), dtype)
