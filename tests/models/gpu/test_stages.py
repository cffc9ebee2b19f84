"""The GPU kernels, run as plain JAX, against their plain twins in `stages`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from densenet_jax import create_model
from densenet_jax.models.block import dense_block, implementations, plain
from densenet_jax.models.gpu import backward, backward_pooled, backward_stem, forward, stem
from densenet_jax.models.gpu.tiles import Tile
from densenet_jax.models.pooling import maxima

# Type, images, channels of the buffer, channels read, bottleneck width, growth rate.  Nothing
# divides the tiles in the first: masks cut rows, channels in and channels out.
CASES = {
    "odd": (jnp.float32, (2, 5, 6), 24, 20, 12, 4),
    "even": (jnp.bfloat16, (2, 4, 8), 64, 32, 32, 16),
}
TILE = Tile(rows=16, channels=16, warps=1, stages=1)
# Kernels and twins round at different places; sums over rows add up the differences.
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def assert_close(actual, expected, dtype):
    """Compares each result with the largest value of its twin's."""
    for a, b in zip(actual, expected, strict=True):
        b = np.asarray(b, np.float32)
        a = np.asarray(a, np.float32).reshape(b.shape)
        assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max()


class Arrays:
    """Random arrays of one type; per-channel vectors are float32."""

    def __init__(self, dtype):
        self.rng, self.dtype = np.random.default_rng(0), dtype

    def maps(self, *shape):
        return jnp.asarray(self.rng.normal(size=shape), self.dtype)

    def vectors(self, size):
        return tuple(jnp.asarray(self.rng.normal(size=size), jnp.float32) for _ in range(2))

    def kernel(self, *shape):
        return jnp.asarray(self.rng.normal(0, 0.1, shape), jnp.float32)


def matrix(x):
    return x.reshape(-1, x.shape[-1])


def test_forward_1x1(case):
    dtype, image, channels, c, d, _ = case
    arrays = Arrays(dtype)
    x, affine, w = arrays.maps(*image, channels), arrays.vectors(c), arrays.kernel(1, 1, c, d)
    options = {"expected": arrays.vectors(c)[0], "interpret": True, "tile": TILE}
    actual = forward.conv1x1(matrix(x), *affine, w[0, 0], **options)
    assert_close(actual, plain.forward(x, *affine, w), dtype)
    options |= {"measure": False}
    (y,) = forward.conv1x1(matrix(x), *affine, w[0, 0], **options)
    np.testing.assert_array_equal(y, actual[0])


def test_transition(case):
    """Wider than a program's columns, and with rows and columns of images that have no window."""
    dtype, image, _, c, _, _ = case
    arrays, d = Arrays(dtype), 260
    x, affine, w = arrays.maps(*image, c), arrays.vectors(c), arrays.kernel(1, 1, c, d)
    options = {"image": image[1:], "interpret": True, "tile": TILE}
    actual = forward.conv1x1(matrix(x), *affine, w[0, 0], **options)
    expected = plain.forward(x, *affine, w, pool=True)
    assert_close(actual, expected, dtype)
    d_out, correction = arrays.maps(*expected[0].shape), arrays.vectors(d)
    maps = matrix(d_out), matrix(expected[0])
    actual = backward_pooled.conv1x1(matrix(x), *affine, w[0, 0], *maps, correction, **options)
    gradients = {"d_out": d_out, "out": expected[0], "correction": correction}
    assert_close(actual, plain.backward(x, *affine, w, pool=True, **gradients), dtype)


@pytest.mark.parametrize(
    ("dtype", "shape", "d"),
    [(jnp.float32, (2, 35, 23, 3), 20), (jnp.bfloat16, (1, 9, 32, 1), 80)],
    ids=["odd", "wider than a program"],
)
def test_stem(dtype, shape, d):
    """The first has more lines than a program; all borders of images lie in some tile."""
    arrays = Arrays(dtype)
    x, affine, w = arrays.maps(*shape), arrays.vectors(d), arrays.kernel(7, 7, shape[3], d)
    tile = TILE._replace(channels=64)
    actual = stem.stem(x, *affine, w, room=3, interpret=True, tile=tile)
    expected = plain.stem(x, *affine, w)
    assert actual.shape == (*expected.shape[:3], d + 3)
    assert_close([actual[..., :d]], [expected], dtype)


@pytest.mark.parametrize(
    ("dtype", "shape", "d"),
    [(jnp.float32, (2, 13, 19, 3), 20), (jnp.bfloat16, (1, 9, 32, 5), 80)],
    ids=["odd", "wider than a program"],
)
def test_gradient_of_the_stem(dtype, shape, d):
    """Squares of positions reach over borders, and their last range ends within a tile."""
    arrays = Arrays(dtype)
    x, affine = arrays.maps(*shape), arrays.vectors(d)
    y = plain.convolve(x, arrays.kernel(7, 7, shape[3], d), 2)
    pooled, (where, _) = maxima(y, *affine, "relu")
    arguments = x, y, *affine, where, arrays.maps(*pooled.shape), arrays.vectors(d)
    tile = TILE._replace(channels=128, programs=3)
    actual = backward_stem.stem(*arguments, interpret=True, tile=tile)
    assert_close([actual], [plain.stem_gradient(*arguments)], dtype)


def networks_and_images():
    """Returns a network in plain JAX and one with kernels, their variables, and images."""
    sizes = {"block_sizes": (1,), "growth_rate": 4, "stem_features": 16, "num_classes": 2}
    images = Arrays(jnp.float32).maps(2, 9, 13, 3)
    plain_model, model = (
        create_model("densenet121", implementation=name, **sizes)
        for name in ("plain", "interpreted")
    )
    return plain_model, model, jax.jit(plain_model.init)(jax.random.key(0), images), images


def test_a_network_in_training_joins_its_stem(monkeypatch):
    """Gradients of parameters and images, and running statistics; the same on a mesh."""
    plain_model, model, variables, images = networks_and_images()
    calls, kernel = [], backward_stem.stem
    monkeypatch.setattr(
        backward_stem, "stem", lambda *a, **k: [calls.append(1), kernel(*a, **k)][1]
    )

    def gradients(model, images):
        def loss(params, images):
            given = {**variables, "params": params}
            logits, updates = model.apply(given, images, train=True, mutable=["batch_stats"])
            return (jnp.sin(logits) * jnp.arange(4.0).reshape(2, 2)).sum(), updates

        step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        (of_params, of_images), statistics = step(variables["params"], images)
        # One vector each: some parameters' gradients cancel to nearly 0.
        return [ravel_pytree(tree)[0] for tree in (of_params, of_images, statistics)]

    expected = gradients(plain_model, images)
    assert_close(gradients(model, images), expected, jnp.float32)
    assert calls
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        images = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
        assert_close(gradients(model, images), expected, jnp.float32)


def test_a_network_in_evaluation_joins_its_stem(monkeypatch):
    plain_model, model, variables, images = networks_and_images()
    calls, kernel = [], stem.stem
    monkeypatch.setattr(stem, "stem", lambda *a, **k: [calls.append(1), kernel(*a, **k)][1])
    found, expected = (m.apply(variables, images) for m in (model, plain_model))
    assert_close([found], [expected], jnp.float32)
    assert calls


def test_forward_3x3(case):
    dtype, image, channels, c, d, growth = case
    arrays = Arrays(dtype)
    x, z = arrays.maps(*image, channels), arrays.maps(*image, d)
    affine, w = arrays.vectors(d), arrays.kernel(3, 3, d, growth)
    actual = forward.conv3x3(
        *(matrix(z), *affine, w, matrix(x)),
        image=image[1:],
        offset=c,
        interpret=True,
        tile=TILE,
    )
    assert_close(actual, plain.forward(z, *affine, w, into=x, offset=c), dtype)


@pytest.mark.parametrize(
    ("layers", "start"), [(1, 0), (2, 0), (1, 4), (3, 4)], ids=lambda value: str(value)
)
def test_backward_1x1(case, layers, start):
    """Of one or several layers, from channel `start` on; the later layers read more channels."""
    dtype, image, channels, c, d, _ = case
    arrays = Arrays(dtype)
    x, dx = (arrays.maps(*image, channels) for _ in range(2))
    readers, twins = [], []
    for i in range(layers):
        z, dz = (arrays.maps(*image, d) for _ in range(2))
        reads = min(c + 2 * i, channels)
        affine, correction = arrays.vectors(reads), arrays.vectors(d)
        w = arrays.kernel(1, 1, reads, d)
        readers.append(backward.Reader(*affine, w[0, 0], matrix(dz), matrix(z), *correction))
        twins.append((*affine, w, {"d_out": dz, "out": z, "correction": correction}))
    actual, sums = backward.conv1x1(
        *(matrix(x), readers, matrix(dx)), within=(start, c), interpret=True, tile=TILE
    )
    expected, twin_sums = plain.backward_together(x, twins, dx, (start, c))
    assert_close([actual], [expected], dtype)
    for found, wanted in zip(sums, twin_sums, strict=True):
        assert_close(found, wanted, dtype)


def test_backward_3x3(case):
    dtype, image, channels, c, d, growth = case
    arrays = Arrays(dtype)
    x, dx = (arrays.maps(*image, channels) for _ in range(2))
    z, affine, correction = arrays.maps(*image, d), arrays.vectors(d), arrays.vectors(growth)
    w = arrays.kernel(3, 3, d, growth)
    actual = backward.conv3x3(
        *(matrix(z), *affine, w, matrix(dx), matrix(x), correction),
        image=image[1:],
        offset=c,
        interpret=True,
        tile=TILE,
    )
    expected = plain.backward(z, *affine, w, d_out=dx, out=x, correction=correction, offset=c)
    assert_close(actual, expected, dtype)


def layers(*shapes):
    return [[(None, jnp.zeros(shape)) for shape in shapes]]


def test_choice_of_implementation():
    x, bottleneck = jnp.zeros((1, 4, 4, 8), jnp.bfloat16), layers((1, 1, 8, 4), (3, 3, 4, 2))
    assert implementations.choose("auto", x, bottleneck, 0.0) == "plain"  # on a CPU
    assert implementations.choose("gpu", x, bottleneck, 0.0) == "gpu"
    assert implementations.choose("gpu", x, bottleneck, 0.1) == "plain"
    assert implementations.choose("gpu", x.astype(jnp.float32), bottleneck, 0.0) == "plain"
    assert implementations.choose("gpu", x, layers((3, 3, 8, 2)), 0.0) == "plain"
    wide = layers((1, 1, 8, 320), (3, 3, 320, 80))
    assert implementations.choose("gpu", x, wide, 0.0) == "plain"
    with pytest.raises(ValueError, match="implementation is 'fast'; it must be one of 'auto'"):
        dense_block.train(x, None, bottleneck, epsilon=1e-5, implementation="fast")
