"""Fields of DenseNet that change what is computed: growth per block, activation, global pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax import create_model
from densenet_jax.benchmark import limits
from densenet_jax.models import activation, summary
from densenet_jax.models.block import implementations
from densenet_jax.models.cpu import library
from densenet_jax.models.parts import part_of
from densenet_jax.models.variants import identify
from densenet_jax.weights import Preprocessing, timm_config
from tests.random_variables import random_variables

TINY = {"block_sizes": (1, 2), "growth_rate": 4, "stem_features": 8, "num_classes": 3}


def images(shape=(2, 16, 16, 3)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_the_plan_of_densenet121():
    plan = create_model("densenet121").plan()
    assert [(b.in_features, b.out_features, b.kept) for b in plan] == [
        (64, 256, 128),
        (128, 512, 256),
        (256, 1024, 512),
        (512, 1024, None),
    ]
    assert plan[0].widths == [64, 96, 128, 160, 192, 224]
    assert {b.bottleneck for b in plan} == {128}


def test_growth_rate_of_each_block_reaches_every_count():
    fields = {"block_sizes": (1, 2, 3, 2), "num_classes": 10}
    model = create_model("densenet121", growth_rate=(8, 16, 32, 64), **fields)
    assert [b.growth_rate for b in model.plan()] == [8, 16, 32, 64]
    variables = jax.eval_shape(model.init, jax.random.key(0), images((1, 64, 64, 3)))
    # Counted by hand: 64 -> 72 -> 36 -> 68 -> 34 -> 130 -> 65 -> 193 feature maps.
    assert variables["params"]["classifier"]["kernel"].shape == (193, 10)
    assert variables["params"]["transition2"]["conv"]["kernel"].shape == (1, 1, 68, 34)
    last = variables["params"]["denseblock4"]["denselayer2"]
    assert last["conv1"]["kernel"].shape == (1, 1, 65 + 64, 256)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert summary.count(model, 64).parameters == parameters
    narrow, wide = (
        limits.work(create_model("densenet121", growth_rate=g, **fields), 64)
        for g in (16, (16, 16, 16, 32))
    )
    assert wide[0].bytes > narrow[0].bytes
    assert wide[1].bytes > narrow[1].bytes
    same, one = (create_model("densenet121", growth_rate=g, **fields) for g in ((32,) * 4, 32))
    assert limits.work(same, 64) == limits.work(one, 64)
    assert identify(model)[1]["growth_rate"] == (8, 16, 32, 64)


def test_growth_rate_needs_one_number_for_each_block():
    with pytest.raises(ValueError, match="growth_rate has 3 numbers for 4 blocks"):
        create_model("densenet121", growth_rate=(8, 16, 32)).plan()


def test_a_growth_rate_of_each_block_is_read_back_from_a_configuration():
    model = create_model("densenet121", **{**TINY, "growth_rate": (4, 6)})
    config = timm_config.to_config(model, Preprocessing(32))
    assert not timm_config.fits_timm(model)  # timm has one growth rate
    assert config["densenet_jax"]["fields"]["growth_rate"] in ((4, 6), [4, 6])


@pytest.mark.parametrize(
    ("name", "implementation"), [("silu", "plain"), ("leaky_relu", "plain"), ("gelu", "cpu")]
)
def test_gradients_follow_the_activation(name, implementation):
    model = create_model("densenet121", **TINY, activation=name, implementation=implementation)
    variables, x = random_variables(model), images()

    def loss(step, model):
        logits, _ = model.apply(
            variables, x + step * direction, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    direction = images()[::-1]
    value, slope = jax.jit(jax.value_and_grad(lambda s: loss(s, model)))(0.0)
    reference = model.clone(implementation="reference")
    expected = jax.jit(jax.value_and_grad(lambda s: loss(s, reference)))(0.0)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    np.testing.assert_allclose(slope, expected[1], rtol=2e-3)


def test_an_activation_that_replaces_relu_reaches_the_gradient(monkeypatch):
    """Whoever edits the table must not get the kernels' ReLU, or its derivative."""
    monkeypatch.setitem(activation.ACTIVATIONS, "relu", jax.nn.softplus)
    x = images()
    values = []
    for implementation in ("reference", "plain", "auto", "cpu"):
        model = create_model("densenet121", **TINY, implementation=implementation)
        variables = random_variables(model)

        def loss(x, model=model, variables=variables):
            logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
            return (logits**2).sum()

        values.append(jax.jit(jax.grad(loss))(x))
    for other in values[1:]:
        scale = np.abs(values[0]).max()
        np.testing.assert_allclose(other / scale, values[0] / scale, atol=1e-4)


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pool(name):
    pooled = create_model("densenet121", **{**TINY, "num_classes": 0}, global_pool=name)
    variables, x = random_variables(pooled), images()
    final = pooled.apply(variables, x, method="features")["final"]
    average, maximum = final.mean((1, 2)), final.max((1, 2))
    expected = {
        "avg": average,
        "max": maximum,
        "avgmax": (average + maximum) / 2,
        "catavgmax": jnp.concatenate([average, maximum], axis=1),
    }[name]
    np.testing.assert_allclose(pooled.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    model = create_model("densenet121", **TINY, global_pool=name)
    assert model.apply(random_variables(model), x).shape == (2, 3)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            {"activation": "swish"},
            "'swish'; it must be one of 'relu', 'silu', 'gelu', 'leaky_relu'",
        ),
        ({"global_pool": "mean"}, "'mean'; it must be one of 'avg', 'max', 'avgmax', 'catavgmax'"),
        ({"implementation": "fast"}, "'fast'; it must be one of 'auto', 'reference', 'plain'"),
    ],
)
def test_unknown_values_are_answered_with_those_that_exist(field, message):
    model = create_model("densenet121", **TINY, **field)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), images())


@pytest.mark.parametrize(("earlier", "now"), [("native", "cpu"), ("kernels", "gpu")])
def test_earlier_names_of_implementations_still_work(earlier, now):
    results = []
    for name in (earlier, now):
        model = create_model("densenet121", **TINY, implementation=name)
        results.append(model.apply(random_variables(model), images()))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("frozen", [("stem", "block1"), ("block2",), ("norm",), ()])
def test_parts_named_in_freeze_statistics_keep_them_and_the_others_do_not(frozen):
    model = create_model("densenet121", **TINY, freeze_statistics=frozen)
    variables = random_variables(model)
    _, new = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, images()
    )
    before, after = variables["batch_stats"], new["batch_stats"]
    for module, leaves in before.items():
        moved = any(
            (np.asarray(a) != b).any()
            for a, b in zip(jax.tree.leaves(after[module]), jax.tree.leaves(leaves), strict=True)
        )
        assert moved == (part_of(f"{module}/x") not in frozen), module


def test_a_part_without_statistics_cannot_keep_them():
    with pytest.raises(ValueError, match="part in freeze_statistics is 'head'; it must be one of"):
        jax.eval_shape(
            create_model("densenet121", **TINY, freeze_statistics=("head",)).init,
            jax.random.key(0),
            images(),
        )


def test_cpu_kernels_replace_16_bits_and_say_so_once(monkeypatch, caplog):
    if not library.available():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(library, "has_bfloat16", lambda: False)  # the processor of most
    implementations._say_float32.cache_clear()
    model = create_model("densenet121", **TINY, implementation="cpu")
    variables, x = random_variables(model), images()
    expected = model.apply(variables, x)
    with caplog.at_level("WARNING"):
        for dtype in (jnp.bfloat16, jnp.float16):
            half = model.clone(dtype=dtype)
            np.testing.assert_array_equal(half.apply(variables, x), expected)
            half.apply(variables, x)
            assert half.apply(variables, x, method="features")["block1"].dtype == dtype
    first, second = caplog.messages
    assert first == "dtype=bfloat16: the CPU kernels compute in float32, which is faster here."
    assert second.startswith("dtype=float16: ")
