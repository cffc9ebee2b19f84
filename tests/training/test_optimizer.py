"""One update of every optimiser against its formula; masks; disabled features keep no state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.masks import decay_mask, depth_factors
from densenet_jax.training.optimizer import OPTIMIZERS, make_optimizer, with_clock

PARAMS = {
    "conv0": {"kernel": jnp.array([3.0, 4.0])},
    "denseblock1": {"denselayer1": {"norm1": {"scale": jnp.array([1.0, 2.0])}}},
    "denseblock2": {"denselayer1": {"conv1": {"kernel": jnp.array([1.0, 1.0])}}},
    "classifier": {"kernel": jnp.array([2.0, 0.0]), "bias": jnp.array([1.0, -1.0])},
}
GRADIENTS = jax.tree.map(lambda x: 0.5 * x + 0.1, PARAMS)
RATE, DECAY = 0.01, 0.1


def first_update(**options):
    optimizer = make_optimizer(lambda _: RATE, weight_decay=DECAY, **options)
    changes, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    return jax.device_get(changes)


def expected(name: str, kernel: bool, p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Returns the first update of each method, from zero moments, as in its paper."""
    decay = DECAY * p if kernel else 0 * p
    norm = np.linalg.norm
    if name == "sgd":  # Nesterov, 0.9: the gradient, and 0.9 of the momentum it has just become
        return -RATE * 1.9 * (g + decay)
    if name == "lars":
        u = g + decay
        return -RATE * 1.9 * u * (0.001 * norm(p) / norm(u) if kernel else 1)
    if name == "lion":
        return -RATE * (np.sign(g) + decay)
    if name == "muon":  # these are no matrices: Nadam, whose first moment looks a step ahead
        return -RATE * ((0.9 * 0.1 / (1 - 0.9**2) + 1) * np.sign(g) + decay)
    u = g / (np.abs(g) + (1e-6 if name == "lamb" else 1e-8)) + decay  # both moments unbiased
    if name == "lamb" and kernel:
        u = u * norm(p) / norm(u)
    return -RATE * u


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_step_is_the_papers(name):
    changes = first_update(name=name)
    for path, got in jax.tree_util.tree_leaves_with_path(changes):
        p, g = (np.float64(_get(tree, path)) for tree in (PARAMS, GRADIENTS))
        want = expected(name, path[-1].key == "kernel", p, g)
        np.testing.assert_allclose(got, want, rtol=2e-5, err_msg=f"{name} {path}")


def _get(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_muon_makes_the_filters_of_a_convolution_orthogonal():
    gradient = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
    params = {"conv0": {"kernel": jnp.zeros_like(gradient)}}
    optimizer = make_optimizer(lambda _: RATE, name="muon", weight_decay=DECAY)
    changes, _ = optimizer.update({"conv0": {"kernel": gradient}}, optimizer.init(params), params)
    u, _, v = np.linalg.svd(np.float64(gradient).reshape(18, 5), full_matrices=False)
    rotated = u.T @ np.float64(changes["conv0"]["kernel"]).reshape(18, 5) @ v.T
    values = np.diag(rotated) / (-RATE * 0.2 * np.sqrt(18))
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-6)
    assert np.all((values > 0.65) & (values < 1.25)), values  # what five iterations reach


def test_betas_and_epsilon_reach_the_method():
    kernel = first_update(name="adamw", betas=(0.5, 0.5), epsilon=1.0)["conv0"]["kernel"]
    g = np.asarray(GRADIENTS["conv0"]["kernel"])
    np.testing.assert_allclose(kernel, -RATE * (g / (g + 1) + 0.1 * np.array([3, 4])), rtol=1e-5)


def test_unknown_optimiser_is_named():
    with pytest.raises(ConfigError, match="'adam'; it must be one of sgd, adamw"):
        make_optimizer(lambda _: RATE, name="adam")


def test_only_kernels_decay():
    params = {"a": {"kernel": 1.0}, "b": {"scale": 1.0, "bias": 1.0, "gamma": 1.0}}
    wanted = {"a": {"kernel": True}, "b": {"scale": False, "bias": False, "gamma": False}}
    chex.assert_trees_all_equal(decay_mask(params), wanted)


def test_gradients_are_clipped_before_anything_else():
    norm = float(optax.global_norm(GRADIENTS))
    plain = make_optimizer(lambda _: RATE, weight_decay=0.0)
    clipped = make_optimizer(lambda _: RATE, weight_decay=0.0, clip_norm=norm / 4)
    whole, _ = plain.update(GRADIENTS, plain.init(PARAMS), PARAMS)
    quarter, _ = clipped.update(GRADIENTS, clipped.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(quarter, jax.tree.map(lambda g: g / 4, whole), rtol=1e-5)
    loose = make_optimizer(lambda _: RATE, weight_decay=0.0, clip_norm=norm * 2)
    same, _ = loose.update(GRADIENTS, loose.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(whole, same)


def test_clipping_where_nothing_trains():
    parts = ("stem", "block1", "block2", "head")
    changes = first_update(frozen=parts, clip_norm=1.0)
    assert not any(np.any(x != 0) for x in jax.tree.leaves(changes))


def test_rates_fall_towards_the_stem():
    factors = jax.device_get(depth_factors(PARAMS, 0.5))
    assert factors["classifier"] == {"kernel": 1.0, "bias": 1.0}
    assert factors["denseblock2"]["denselayer1"]["conv1"]["kernel"] == 0.5
    assert factors["denseblock1"]["denselayer1"]["norm1"]["scale"] == 0.25
    assert factors["conv0"]["kernel"] == 0.125
    whole, scaled = first_update(name="adamw"), first_update(name="adamw", layer_decay=0.5)
    jax.tree.map(
        lambda a, b, f: np.testing.assert_allclose(b, a * f, rtol=1e-6), whole, scaled, factors
    )


def test_frozen_parts_do_not_move_whatever_the_rates():
    changes = first_update(frozen=("stem", "block1"), layer_decay=0.5, clip_norm=1.0)
    moved = jax.tree.map(lambda x: bool(np.any(x != 0)), changes)
    assert moved["classifier"] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves([moved["conv0"], moved["denseblock1"]]))
    assert all(jax.tree.leaves(moved["denseblock2"]))
    with pytest.raises(ConfigError, match="has block7; the parts of this model are block1, block2"):
        make_optimizer(lambda _: RATE, frozen=("block7",)).init(PARAMS)


def test_what_is_off_leaves_no_trace_in_the_state():
    off = make_optimizer(lambda _: RATE, clip_norm=0.0, layer_decay=1.0)
    plain = optax.chain(
        optax.add_decayed_weights(1e-4, mask=decay_mask), optax.sgd(lambda _: RATE, 0.9, True)
    )
    structure = jax.tree.structure(off.init(PARAMS))
    assert structure == jax.tree.structure(plain.init(PARAMS))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedules_follow_the_step_of_the_run(name):
    """Optax counts updates, which a skipped step does not make."""
    optimizer = make_optimizer(lambda step: jnp.where(step == 7, 1.0, 0.0), name=name)
    _, late = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)  # one update behind

    def largest_change(step: int) -> float:
        # The rate of lars goes into its momentum, which is 0 here: all rates before were 0.
        changes, _ = optimizer.update(GRADIENTS, with_clock(late, jnp.int32(step)), PARAMS)
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(changes))

    assert largest_change(7) > 0
    assert largest_change(6) == largest_change(8) == 0
