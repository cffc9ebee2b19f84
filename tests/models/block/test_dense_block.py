"""The dense block in every implementation against the reference, which JAX differentiates."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models.activation import norm_act
from densenet_jax.models.block import dense_block
from densenet_jax.models.block.plain import convolve
from densenet_jax.models.block.statistics import affine, moments
from densenet_jax.models.pooling import average_pool

EPSILON = 1e-5
reference = functools.partial(dense_block.train, implementation="reference")


def make_layers(rng, depth, channels, growth, bottleneck, dtype):
    """Random layers as `dense_block.train` takes them."""

    def norm(c):
        return {
            "scale": jnp.asarray(rng.uniform(0.5, 1.5, c), dtype),
            "bias": jnp.asarray(rng.normal(0, 0.5, c), dtype),
        }

    def kernel(k, c, d):
        return jnp.asarray(rng.normal(0, (2 / (k * k * c)) ** 0.5, (k, k, c, d)), dtype)

    layers = []
    for _ in range(depth):
        if bottleneck:
            width = bottleneck * growth
            pairs = [(norm(channels), kernel(1, channels, width))]
            pairs += [(norm(width), kernel(3, width, growth))]
        else:
            pairs = [(norm(channels), kernel(3, channels, growth))]
        layers.append(pairs)
        channels += growth
    return layers


def make_loss(block, weights, **kwargs):
    """A scalar that depends on features and on their moments, as the next layer's norm would."""

    def loss(x, layers):
        features, statistics, inner = block(x, moments(x), layers, epsilon=EPSILON, **kwargs)
        y = norm_act(features, *affine({"scale": 1.0, "bias": 0.1}, statistics, EPSILON), "relu")
        return (y.astype(jnp.float32 if y.dtype != jnp.float64 else y.dtype) * weights).sum(), inner

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def problem(shape, depth, growth, bottleneck, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(0.3, 1, shape), dtype)
    layers = make_layers(rng, depth, shape[3], growth, bottleneck, dtype)
    # Around 0 the terms of the loss would cancel and leave mostly their rounding.
    weights = rng.normal(0.5, 1, (*shape[:3], shape[3] + depth * growth))
    return x, layers, weights


def assert_close(actual, expected, tolerance):
    """Compares every array with the largest value of its counterpart."""

    def compare(a, b):
        b = np.asarray(b, np.float64)
        difference = np.abs(np.asarray(a, np.float64) - b).max()
        assert difference <= tolerance * max(np.abs(b).max(), 1e-3)

    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize(
    ("bottleneck", "rate", "drop_path"),
    [(2, 0.0, ()), (2, 0.2, (0.0, 0.5)), (0, 0.2, ()), (0, 0.0, (0.25, 0.5))],
)
def test_gradient_matches_automatic_differentiation(bottleneck, rate, drop_path):
    with jax.enable_x64(True):
        x, layers, weights = problem((2, 5, 6, 7), 2, 4, bottleneck, jnp.float64)
        kwargs = {"dropout_rate": rate, "drop_path": drop_path}
        kwargs = (
            {**kwargs, "key": jax.random.key(3, impl="unsafe_rbg")} if any(kwargs.values()) else {}
        )
        expected = make_loss(reference, weights, **kwargs)(x, layers)
        actual = make_loss(dense_block.train, weights, **kwargs)(x, layers)
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("activation", ["silu", "gelu", "leaky_relu"])
def test_gradient_follows_the_activation(activation):
    with jax.enable_x64(True):
        x, layers, weights = problem((1, 3, 5, 7), 2, 3, 2, jnp.float64)
        expected = make_loss(reference, weights, activation=activation)(x, layers)
        actual = make_loss(dense_block.train, weights, activation=activation)(x, layers)
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("implementation", ["plain", "interpreted", "cpu", "tpu"])
@pytest.mark.parametrize(
    ("shape", "growth", "bottleneck"),
    [((1, 5, 7, 13), 7, 3), ((3, 2, 1, 20), 9, 3), ((2, 5, 7, 13), 7, 0)],
    ids=str,
)
def test_implementations_agree_with_the_reference(implementation, shape, growth, bottleneck):
    """Odd sizes, one image, and widths that no vector of the hardware divides."""
    x, layers, weights = problem(shape, 2, growth, bottleneck, jnp.float32)
    expected = make_loss(reference, weights)(x, layers)
    actual = make_loss(dense_block.train, weights, implementation=implementation)(x, layers)
    assert_close(actual, expected, 1e-4)


def test_an_odd_layer_beside_pairs():
    """The GPU kernels add to the gradient of the block for two layers at once."""
    x, layers, weights = problem((1, 3, 4, 5), 3, 4, 2, jnp.float32)
    expected = make_loss(reference, weights)(x, layers)
    actual = make_loss(dense_block.train, weights, implementation="interpreted")(x, layers)
    assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize("implementation", ["plain", "interpreted"])
def test_bfloat16_is_as_close_to_float32_as_the_reference(implementation):
    """Values have 8 bits, 0.4 %; where a ReLU's input changes its sign, gradients have 10 %.

    The reference adds up a map's gradients from its statistics and from its normalisation in
    float32; the others add to a buffer in bfloat16 once more, which costs up to half of that again.
    """
    x, layers, weights = problem((4, 6, 6, 16), 1, 16, 2, jnp.float32)
    narrow = x.astype(jnp.bfloat16)
    _, exact = make_loss(reference, weights)(x, layers)
    _, expected = make_loss(reference, weights)(narrow, layers)
    _, actual = make_loss(dense_block.train, weights, implementation=implementation)(narrow, layers)
    for leaves in zip(*map(jax.tree.leaves, (exact, expected, actual)), strict=True):
        true, *rounded = (np.asarray(leaf, np.float32) for leaf in leaves)
        error_of_reference, error = (np.linalg.norm(v - true) for v in rounded)
        assert error <= 1.5 * error_of_reference
        assert error <= 0.15 * np.linalg.norm(true)


@pytest.mark.parametrize("implementation", ["plain", "interpreted", "cpu", "tpu"])
def test_same_on_eight_devices(implementation):
    """Statistics are those of the whole batch, wherever its parts are."""
    x, layers, weights = problem((8, 4, 4, 8), 2, 8, 2, jnp.float32)
    expected = make_loss(dense_block.train, weights)(x, layers)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P(("data", "model"))))
        layers = jax.device_put(layers, jax.NamedSharding(mesh, jax.P()))
        sharded = make_loss(dense_block.train, weights, implementation=implementation)
        actual = sharded(x, layers)
    assert not actual[1][0].sharding.is_fully_replicated
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(
    ("members", "implementation"), [(1, "interpreted"), (2, "interpreted"), (2, "cpu")]
)
def test_kernels_in_groups_with_statistics_of_their_own(members, implementation):
    """Mapped over the groups, the kernels are mapped over the devices of each, and no others."""
    x, layers, weights = problem((4, 4, 4, 8), 1, 8, 2, jnp.float32)
    group = make_loss(dense_block.train, weights[:2], implementation=implementation)
    plain = make_loss(dense_block.train, weights[:2])
    expected = [plain(part, layers)[1] for part in (x[:2], x[2:])]
    mesh = jax.make_mesh(
        (2, members), ("data", "member"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    with jax.set_mesh(mesh):
        d_x, d_layers = jax.jit(
            jax.shard_map(
                lambda x, layers: jax.tree.map(lambda d: d[None], group(x, layers)[1]),
                in_specs=(jax.P("data"), jax.P()),
                out_specs=jax.P("data"),
                axis_names={"data"},
                check_vma=False,
            )
        )(jax.device_put(x, jax.NamedSharding(mesh, jax.P(("data", "member")))), layers)
    for i in range(2):
        actual = jax.tree.map(operator.itemgetter(i), (d_x, d_layers))
        assert_close(actual, expected[i], 1e-5)


def test_a_transition_is_the_first_stage_of_the_block():
    """In training and with fixed statistics; an odd last row belongs to no window."""
    (_, layers, weights), rng = (
        problem((2, 2, 3, 8), 2, 4, 2, jnp.float32),
        np.random.default_rng(1),
    )
    x = jnp.asarray(rng.normal(0.3, 1, (2, 5, 6, 12)), jnp.float32)
    norm = {"scale": jnp.linspace(0.5, 1.5, 12), "bias": jnp.linspace(-1, 1, 12)}
    transition = norm, jnp.asarray(rng.normal(0, 0.4, (1, 1, 12, 8)), jnp.float32)

    def apart(x, statistics, parts, **options):
        (norm, kernel), layers = parts
        x = convolve(norm_act(x, *affine(norm, statistics, EPSILON), "relu"), kernel)
        x = average_pool(x)
        return reference(x, moments(x), layers, **options)

    def together(x, statistics, parts, **options):
        transition, layers = parts
        options |= {"transition": transition, "implementation": "interpreted"}
        return dense_block.train(x, statistics, layers, **options)

    expected, actual = (make_loss(f, weights)(x, (transition, layers)) for f in (apart, together))
    assert_close(actual, expected, 1e-5)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        assert_close(make_loss(together, weights)(sharded, (transition, layers)), expected, 1e-5)

    frozen = [[(tuple(norm.values()), kernel) for norm, kernel in layer] for layer in layers]
    fixed = tuple(norm.values()), transition[1]
    plain = average_pool(convolve(norm_act(x, *fixed[0], "relu"), fixed[1]))
    expected = dense_block.evaluate(plain, frozen, implementation="plain")
    options = {"transition": fixed, "implementation": "interpreted"}
    assert_close(dense_block.evaluate(x, frozen, **options), expected, 1e-5)


def test_evaluation_matches_concatenation():
    x, layers, _ = problem((2, 5, 6, 8), 2, 4, 2, jnp.float32)
    frozen = [[(tuple(norm.values()), kernel) for norm, kernel in layer] for layer in layers]
    expected = x
    for (affine1, kernel1), (affine2, kernel2) in frozen:
        y = convolve(norm_act(expected, *affine1, "relu"), kernel1)
        y = convolve(norm_act(y, *affine2, "relu"), kernel2)
        expected = jnp.concatenate([expected, y], axis=-1)
    for implementation in ("plain", "interpreted", "cpu", "tpu"):
        actual = dense_block.evaluate(x, frozen, implementation=implementation)
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("statistics", ["of the batch", "frozen"])
def test_stochastic_depth_drops_whole_layers_of_an_image(statistics):
    x, layers, _ = problem((64, 3, 3, 8), 2, 4, 2, jnp.float32)
    options = {"drop_path": (0.0, 0.5), "key": jax.random.key(0)}
    if statistics == "frozen":
        layers = [[(tuple(norm.values()), kernel) for norm, kernel in layer] for layer in layers]
        features = dense_block.evaluate(x, layers, **options)
        whole = dense_block.evaluate(x, layers)
    else:
        features, batch, _ = dense_block.train(x, moments(x), layers, epsilon=EPSILON, **options)
        whole = dense_block.train(x, moments(x), layers, epsilon=EPSILON)[0]
        assert_close(batch, moments(features), 1e-5)  # of what is added, zeros included
    assert_close(features[..., :12], whole[..., :12], 1e-6)
    zero = np.all(np.asarray(features[..., 12:]) == 0, axis=(1, 2, 3))
    assert 20 <= zero.sum() <= 44
    assert_close(features[~zero, ..., 12:], 2 * whole[~zero, ..., 12:], 1e-5)


def test_memory_kept_for_the_backward_pass_is_linear_in_depth():
    def kept_values(depth):
        x, layers, _ = problem((2, 8, 8, 16), depth, 8, 4, jnp.float32)

        def block(x, layers):
            return dense_block.train(x, moments(x), layers, epsilon=EPSILON)[0]

        _, transpose = jax.eval_shape(lambda *args: jax.vjp(block, *args), x, layers)
        maps = [v for v in jax.tree.leaves(transpose) if v.shape[:3] == x.shape[:3]]
        return sum(v.shape[3] for v in maps)

    # x (for its moments) and features; for each layer its new maps and its bottleneck.
    for depth in (2, 4, 8):
        assert kept_values(depth) == 2 * 16 + depth * (8 + 32)
