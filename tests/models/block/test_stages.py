"""Each stage of each implementation against `jax.vjp` of the same stage of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import activation
from densenet_jax.models.block import implementations, reference
from densenet_jax.models.cpu import library

# Images, channels of the source's buffer, channels read, channels made.
SHAPES = {
    "one image, odd": ((1, 5, 7), 21, 13, 9),
    "one position": ((1, 1, 1), 8, 8, 5),
    "a few images": ((3, 4, 3), 40, 33, 17),
}
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 3e-2}


def reference_stage(function, x, gain, shift, kernel):
    """Returns the stage's output and the sums of its values and squares."""
    z = x.astype(jnp.float32) * gain + shift
    y = reference.convolve(activation.find_activation(function)(z).astype(x.dtype), kernel)
    wide = y.astype(jnp.float32)
    return y, wide.sum((0, 1, 2)), (wide * wide).sum((0, 1, 2))


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
    else:
        into = maps(buffered + d)
        actual = stage.forward(source, gain, shift, kernel, into=into, offset=buffered, **options)
        expected = (into.at[..., buffered:].set(expected[0]), *expected[1:])
        d_out = maps(buffered + d).at[..., buffered:].set(d_y)
        back = {"d_out": d_out, "out": expected[0], "offset": buffered}
    close(actual, expected, dtype)
    gradients = stage.backward(
        source, gain, shift, kernel, correction=(constant, slope), **back, **options
    )
    close(gradients, (dx, d_kernel, d_shift, d_gain), dtype)
