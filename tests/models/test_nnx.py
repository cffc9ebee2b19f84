"""densenet_jax.nnx: the same networks as NNX modules, with the idioms of NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import densenet_jax
from densenet_jax.models.variants import create_model
from densenet_jax.nnx import Network
from tests.random_variables import random_variables

FIELDS = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 3}
CALL = nnx.jit(lambda module, images: module(images))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)
LABELS = jnp.arange(4) % 3


def linen(name="densenet121", **fields):
    model = create_model(name, **{**FIELDS, **fields})
    return model, random_variables(model)


@pytest.fixture
def network():
    return Network(*linen(dropout_rate=0.5), rngs=nnx.Rngs(dropout=1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_computes_what_apply_does_to_the_bit(dtype):
    model, variables = linen(dtype=dtype)
    found = CALL(Network(model, variables), IMAGES)
    np.testing.assert_array_equal(found, jax.jit(model.apply)(variables, IMAGES))


def test_rdnet_and_networks_without_a_classifier():
    fields = {"block_sizes": (1, 1), "growth_rates": (8, 16), "stem_features": 16}
    model = create_model("rdnet_tiny", **fields, halving=(1,), gated_from=1, num_classes=0)
    variables = random_variables(model)
    found = CALL(Network(model, variables), IMAGES)
    np.testing.assert_array_equal(found, jax.jit(model.apply)(variables, IMAGES))


def test_training_with_an_optimizer_moves_parameters_and_statistics(network):
    optimizer = nnx.Optimizer(network, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels):
        def loss(network):
            logits = network(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    before = jax.tree.map(jnp.copy, nnx.state(network, nnx.BatchStat))
    network.train()
    losses = [float(step(network, optimizer, IMAGES, LABELS)) for _ in range(5)]
    assert np.isfinite(losses).all()
    after = nnx.state(network, nnx.BatchStat)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved))
    assert (CALL(network, IMAGES) != CALL(network, IMAGES)).any()  # dropout
    network.eval()
    np.testing.assert_array_equal(CALL(network, IMAGES), CALL(network, IMAGES))


def test_the_statistics_are_those_of_apply():
    model, variables = linen()
    network = Network(model, variables)
    network.train()
    before = jax.tree.map(np.copy, variables)
    CALL(network, IMAGES)
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    _, updates = step(variables, IMAGES)
    found = network.variables()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, found["batch_stats"], dict(updates["batch_stats"]))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_its_mode_may_be_given_with_a_call(network, monkeypatch):
    calls = []
    monkeypatch.setattr(
        type(network.model), "apply", lambda *_, **k: (calls.append(k), ({}, {}))[1]
    )
    network.classifier = None
    network.eval()
    network(IMAGES, train=True)
    network.train()
    network(IMAGES)
    assert all(k["train"] and "dropout" in k["rngs"] for k in calls)
    network(IMAGES, train=False)
    assert "train" not in calls[-1]


def test_the_head_can_be_replaced_and_the_network_be_a_part_of_another(network):
    network.classifier = nnx.Linear(network.classifier.in_features, 7, rngs=nnx.Rngs(0))
    assert CALL(network, IMAGES).shape == (4, 7)
    network.classifier = None
    width = CALL(network, IMAGES).shape[1]

    class Net(nnx.Module):
        def __init__(self):
            self.backbone = network
            self.head = nnx.Linear(width, 2, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.head(self.backbone(images))

    whole = Net()
    whole.train()
    assert CALL(whole, IMAGES).shape == (4, 2)
    assert not network.deterministic


def test_features_split_merge_and_display(network):
    features = nnx.jit(lambda module, images: module.features(images))(network, IMAGES)
    assert sorted(features) == ["block1", "block2", "final"]
    parts = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
    np.testing.assert_array_equal(CALL(nnx.merge(*parts), IMAGES), CALL(network, IMAGES))
    assert "denseblock1" in repr(network)


def test_its_state_is_saved_and_restored(network, tmp_path):
    state = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "it", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "it", jax.tree.map(jnp.zeros_like, state))
    other = Network(*linen())
    nnx.update(other, restored)
    np.testing.assert_array_equal(CALL(other, IMAGES), CALL(network, IMAGES))


def test_new_and_pretrained_networks(tmp_path):
    fresh = densenet_jax.nnx.create_model("densenet121", rngs=nnx.Rngs(0), **FIELDS)
    assert CALL(fresh, IMAGES).shape == (4, 3)
    model, variables = linen()
    file = tmp_path / "densenet121.safetensors"
    densenet_jax.weights.write_safetensors(
        file, densenet_jax.weights.to_state_dict(model, variables)
    )
    fields = {key: value for key, value in FIELDS.items() if key != "num_classes"}
    loaded = densenet_jax.nnx.load_pretrained(file, "densenet121", num_classes=5, **fields)
    assert CALL(loaded, IMAGES).shape == (4, 5)
    with pytest.raises(AttributeError, match="no attribute 'keras'"):
        densenet_jax.keras  # noqa: B018
