"""The CPU kernels whose products are in bfloat16, on any processor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densenet_jax
from densenet_jax.models.block import implementations
from densenet_jax.models.cpu import library, stem
from densenet_jax.models.cpu.stages import Stages
from tests.models.cpu.test_stages import CASES
from tests.models.cpu.test_stem import CONVOLUTIONS

BFLOAT16 = Stages("bfloat16")


@pytest.fixture(autouse=True)
def compiler():
    if not library.available("bfloat16"):
        pytest.skip("no C++ compiler")


class Small:
    """Whole numbers so small that every operand of a product, transformed or not, is a bfloat16."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, *shape):
        return jnp.asarray(self.rng.integers(-4, 5, shape), jnp.float32)

    def affine(self, size):
        return self(size), self(size)


def assert_equal(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_stages_multiply_what_the_float32_ones_do(case):
    image, channels, c, d, growth = case
    small = Small()
    x, dx, z, dz = (small(*image, n) for n in (channels, channels, d, d))
    narrow = (x, *small.affine(c), small(1, 1, c, d))
    near = (z, *small.affine(d), small(3, 3, d, growth))
    step = {"d_out": dz, "out": z, "correction": small.affine(d), "d_source": dx}
    last = {"d_out": dx, "out": x, "correction": small.affine(growth), "offset": c}

    def run(stages):
        return [
            stages.forward(*narrow),
            stages.forward(*near, into=x, offset=c),
            stages.backward(*narrow, **step),
            stages.backward(*near, **last),
        ]

    assert_equal(run(BFLOAT16), run(Stages()))


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_multiply_what_the_float32_ones_do(case):
    image, c, size, stride, d = case
    small = Small()
    x, kernel = small(*image, c), small(size, size, c, d)
    y = stem.measured_convolution(x, kernel, stride)[0]
    arrays = x, small(*y.shape), small(*y.shape), *small.affine(d)
    results = (library.array(*kernel.shape),)

    def run(products):
        found = library.call("ConvolveBackward", arrays, results, None, products, stride=stride)
        return stem.measured_convolution(x, kernel, stride, products), found

    assert_equal(run("bfloat16"), run("float32"))


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_operands_are_rounded_to_nearest():
    """And sums are not: each step of a 1x1 stage, from operands as JAX rounds them."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, gain, shift, kernel = draw(1, 5, 7, 37), draw(37), draw(37), draw(1, 1, 37, 21)
    d_out, out, d_x, correction = (
        draw(1, 5, 7, 21),
        draw(1, 5, 7, 21),
        jnp.zeros_like(x),
        draw(2, 21),
    )
    u, w = rounded(jax.nn.relu(x * gain + shift)), rounded(kernel)[0, 0]
    dy = rounded(d_out + correction[0] + correction[1] * out)
    y = BFLOAT16.forward(x, gain, shift, kernel)[0]
    step = {"d_out": d_out, "out": out, "correction": correction, "d_source": d_x}
    d_source, d_kernel, *_ = BFLOAT16.backward(x, gain, shift, kernel, **step)
    with jax.default_matmul_precision("highest"):
        expected = u @ w, (dy @ w.T) * gain * (x * gain + shift > 0)
        expected += (jnp.einsum("bhwc,bhwd->cd", u, dy),)
    for found, wanted in zip((y, d_source, d_kernel[0, 0]), expected, strict=True):
        # An operand that two compilers normalise with another last bit may be rounded elsewhere.
        apart = np.abs(np.asarray(found - wanted)) / np.abs(wanted).max()
        assert np.median(apart) < 1e-7
        assert apart.max() < 2**-8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2**-8, 1.0),  # half-way: to even
        (1 + 3 * 2**-8, 1 + 2**-6),
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (3.4e38, np.inf),
        (np.inf, np.inf),
        (np.float32(np.nan), np.nan),
        (np.array(0x7FFFFFFF, np.uint32).view(np.float32), np.nan),  # all of its bits
    ],
)
def test_rounding(value, expected):
    kernel = jnp.full((1, 1, 3, 2), value, jnp.float32)
    x = jnp.ones((1, 1, 1, 3)).at[..., 1:].set(0)
    y = BFLOAT16.forward(x, jnp.ones(3), jnp.zeros(3), kernel)[0]
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y, np.full(y.shape, expected if finite else np.nan))


def network(**options):
    sizes = {"depth": 10, "growth_rate": 6, "num_classes": 3}
    model = densenet_jax.create_model("densenet_cifar", **sizes, **options)
    images = jax.random.normal(jax.random.key(1), (16, 16, 16, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture
def has_bfloat16(monkeypatch):
    monkeypatch.setattr(library, "has_bfloat16", lambda: True)


def test_bfloat16_is_taken_where_the_processor_multiplies_in_it(has_bfloat16, caplog):
    forced, variables, images = network(implementation="cpu_bfloat16")
    half = forced.clone(implementation="cpu", dtype=jnp.bfloat16)
    single = forced.clone(implementation="cpu")
    logits = [model.apply(variables, images) for model in (forced, half, single)]
    assert_equal(logits[0], logits[1])
    assert not caplog.records
    assert 0 < distance(logits[1], logits[2]) < 0.02

    def gradient(model):
        def loss(params):
            applied = {**variables, "params": params}
            logits, _ = model.apply(applied, images, train=True, mutable=["batch_stats"])
            return (logits**2).sum()

        found = jax.jit(jax.grad(loss))(variables["params"])
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

    # As far as that of plain JAX in bfloat16, whose maps are rounded, too.
    assert 0.001 < distance(gradient(half), gradient(single)) < 0.1
    assert implementations.computed_type(jnp.float16, "cpu", 2) == jnp.float32
    assert implementations.on_cpu("cpu", jnp.float16) == "cpu"


def test_prepared_variables_have_the_type_of_the_products(has_bfloat16):
    model, variables, images = network(implementation="cpu", dtype=jnp.bfloat16)
    prepared = densenet_jax.prepare(model, variables)
    assert any(leaf.dtype == jnp.uint32 for leaf in jax.tree.leaves(prepared))
    apply = jax.jit(model.apply)
    assert_equal(apply(prepared, images), apply(variables, images))
    single = model.clone(dtype=jnp.float32)
    for wrong, given in ((single, prepared), (model, densenet_jax.prepare(single, variables))):
        with pytest.raises(ValueError, match="another type or processor"):
            wrong.apply(given, images)
