import concurrent.futures

import jax
import jax.numpy as jnp
import pytest

import densenet_jax
from densenet_jax.models.cpu import library


def network(**options):
    model = densenet_jax.create_model(
        "densenet_cifar", depth=10, growth_rate=12, num_classes=3, **options
    )
    images = jax.random.normal(jax.random.key(1), (2, 13, 15, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


@pytest.mark.skipif(not library.available(), reason="no C++ compiler")
@pytest.mark.parametrize("bottleneck", [True, False])
def test_prepared_variables_give_the_same_logits(bottleneck):
    model, variables, images = network(bottleneck=bottleneck, implementation="cpu")
    prepared = densenet_jax.prepare(model, variables)
    assert not any("denseblock" in name for name in prepared["params"])
    expected, found = (jax.jit(model.apply)(v, images) for v in (variables, prepared))
    assert (expected == found).all()


@pytest.mark.skipif(not library.available(), reason="no C++ compiler")
def test_calls_at_the_same_time_give_the_same_logits():
    model, variables, images = network(implementation="cpu")
    apply = jax.jit(model.apply)
    expected = apply(variables, images)
    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        for found in callers.map(apply, [variables] * 40, [images] * 40):
            assert (found == expected).all()


@pytest.mark.skipif(not library.available(), reason="no C++ compiler")
def test_prepared_variables_cannot_become_stale():
    model, variables, images = network(implementation="cpu")
    prepared = densenet_jax.prepare(model, variables)
    changed = {**prepared, "params": jax.tree.map(lambda p: 2 * p, variables["params"])}
    with pytest.raises(ValueError, match="prepare"):
        model.apply(changed, images)
    with pytest.raises(ValueError, match="prepare"):
        model.apply(prepared, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("options", [{"implementation": "plain"}, {"activation": "silu"}])
def test_where_nothing_is_to_be_prepared_variables_stay(options):
    model, variables, images = network(**options)
    prepared = densenet_jax.prepare(model, variables)
    assert jax.tree.structure(prepared) == jax.tree.structure(variables)
    assert jnp.isfinite(model.apply(prepared, images)).all()


def test_rdnet_has_nothing_to_prepare():
    model = densenet_jax.create_model("rdnet_tiny", num_classes=3)
    assert densenet_jax.prepare(model, {"params": {}}) == {"params": {}}
