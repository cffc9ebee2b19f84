"""Groups with their own batch statistics: their results, and independence of the devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models.variants import create_model
from densenet_jax.tasks import losses
from densenet_jax.tasks.classification import Classification
from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.groups import Groups, mean_over_groups, plan, split_mesh
from densenet_jax.training.optimizer import make_optimizer
from densenet_jax.training.schedules import make_schedule

BATCH, SHAPE = 16, (4, 4, 1)
# The even and the odd examples of a batch: its two micro-batches.
TWO_MICRO_BATCHES = (*range(0, BATCH, 2), *range(1, BATCH, 2))


def preprocess(key, images, labels):
    return images / 128.0 - 1, jax.nn.one_hot(labels, 10, dtype=jnp.float64)


def make_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, *SHAPE), np.uint8)
    return {"image": images, "label": rng.integers(0, 10, BATCH, np.int32)}


@functools.cache
def parts():
    """Returns model, optimiser and initial state, in float64."""
    size = {"block_sizes": (1,), "growth_rate": 4, "stem": "cifar", "stem_features": 8}
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64, "dropout_rate": 0.1}
    model = create_model("densenet121", in_channels=1, num_classes=10, **size, **types)
    optimizer = make_optimizer(make_schedule("constant", learning_rate=0.1, total_steps=10))
    state = jax.jit(functools.partial(states.initial_state, model, optimizer, 0, SHAPE))()
    return model, optimizer, jax.device_get(state)


def lower(axes: tuple[int, int], group_size: int | None, accumulate: int):
    """Returns the step for a mode, lowered, and its arguments."""
    model, optimizer, state = parts()
    mesh = meshes.make_mesh(*axes)
    groups = plan(BATCH, mesh.size, group_size, accumulate)
    mesh = split_mesh(mesh, groups)
    step = steps.make_train_step(
        *(model, optimizer, lambda step: 0.1, preprocess),
        task=Classification(),
        loss=losses.cross_entropy,
        groups=groups,
    )
    sharding = meshes.state_sharding(mesh, state, smallest=64)
    with jax.set_mesh(mesh):
        step = meshes.train_step_on(mesh, step, sharding)
        state = jax.device_put(state, sharding)
        batch = jax.device_put(make_batch(), meshes.batch_sharding(mesh))
        return step.lower(state, batch), state, batch


@functools.cache
def compiled(*mode):
    """Returns the step, compiled quickly as it runs only a few times, and its arguments."""
    with jax.enable_x64():
        lowered, state, batch = lower(*mode)
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return lowered.compile(compiler_options=options), state, batch


@functools.cache
def run(*mode, order: tuple[int, ...] | None = None):
    """Returns the state and the metrics after two steps with the same batch."""
    with jax.enable_x64():
        step, state, batch = compiled(*mode)
        state = jax.tree.map(jnp.copy, state)
        if order is not None:
            batch = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[order,], x.sharding), batch)
        for _ in range(2):
            state, metrics = step(state, batch)
        return jax.device_get((state, metrics))


def assert_same(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-12)


ONE, EIGHT = (1, 1), (8, 1)


@pytest.mark.parametrize(
    ("axes", "group_size", "accumulate"),
    [
        (EIGHT, 1, 1),  # two groups on each device, in turn
        ((1, 8), 1, 1),  # the same, with the state split over the devices
        ((4, 2), 4, 2),  # micro-batches of two groups, each over four devices; the state in halves
        (EIGHT, None, 2),  # micro-batches over all devices
    ],
)
def test_eight_devices_give_what_one_gives(axes, group_size, accumulate):
    assert_same(run(axes, group_size, accumulate), run(ONE, group_size, accumulate))


def test_micro_batches_are_the_even_and_the_odd_examples():
    """Groups one after another give the same as groups of reordered examples."""
    assert plan(BATCH, 8, 1, 2) == Groups(accumulate=2, parallel=8, in_turn=1)
    assert plan(BATCH, 8, 1, 1) == Groups(accumulate=1, parallel=8, in_turn=2)
    assert_same(run(EIGHT, 1, 2), run(EIGHT, 1, 1, order=TWO_MICRO_BATCHES))


def test_a_group_is_a_small_batch_of_its_own():
    """Gradients, running statistics and metrics are the means of a loop over the groups."""
    with jax.enable_x64():
        model, _, state = parts()
        batch = jax.tree.map(lambda x: x[TWO_MICRO_BATCHES,], make_batch())
        images, targets = preprocess(None, batch["image"], batch["label"])
        _, dropout_key = steps.keys(0, 0)

        @jax.jit
        def group(variables, number, images, targets):
            def loss(params):
                logits, updates = model.apply(
                    {**variables, "params": params},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.fold_in(dropout_key, number)},
                )
                return losses.cross_entropy(logits, targets).mean(), updates["batch_stats"]

            return jax.value_and_grad(loss, has_aux=True)(variables["params"])

        found = [
            group(state.variables, i, images[4 * i : 4 * i + 4], targets[4 * i : 4 * i + 4])
            for i in range(4)
        ]
        (loss, batch_stats), gradients = jax.tree.map(lambda *x: sum(x) / 4, *found)
        step, state, batch = compiled(ONE, 4, 2)
        new, metrics = step(jax.tree.map(jnp.copy, state), batch)
        assert_same((new.batch_stats, metrics["loss"]), (batch_stats, loss))
        # After one step the momentum is the gradient, with weight decay on kernels.
        momentum = jax.tree_util.tree_map_with_path(
            lambda path, g, p: g + 1e-4 * p if path[-1].key == "kernel" else g,
            gradients,
            state.params,
        )
        assert_same(new.opt_state[1][0].trace, momentum)


def test_no_device_waits_for_another_before_its_gradients_are_complete():
    """If each device has its own groups, devices communicate only to add up their results."""

    def collectives(mode):
        names = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
        lines = re.findall(rf"= .* (?:{names})(?:-start)?\(.*", compiled(*mode)[0].as_text())
        return [re.search(r'op_name="([^"]*)"', line)[1] for line in lines]

    apart = collectives((EIGHT, 1, 1))
    assert len(apart) <= 2  # one for each type: the metrics are float32
    assert all(name.endswith("shard_map/psum") for name in apart)
    assert any("jvp(DenseNet)" in name for name in collectives((EIGHT, None, 2)))


def test_groups_in_turn_need_the_memory_of_one():
    def temporaries(mode):
        return compiled(*mode)[0].memory_analysis().temp_size_in_bytes

    assert temporaries((ONE, 1, 1)) < temporaries((ONE, None, 2)) / 3  # 1 and 8 examples at a time


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((256, 1), Groups()),
        ((256, 8), Groups()),
        ((256, 8, 256), Groups()),
        ((256, 8, 32), Groups(parallel=8)),
        ((256, 8, 16), Groups(parallel=8, in_turn=2)),
        ((256, 8, 64), Groups(parallel=4)),
        ((256, 1, 32), Groups(in_turn=8)),
        ((256, 8, 64, 4), Groups(accumulate=4)),
        ((256, 8, 16, 4), Groups(accumulate=4, parallel=4)),
    ],
)
def test_plans(args, expected):
    groups = plan(*args)
    assert groups == expected
    assert groups.count == (args[0] // args[2] if len(args) > 2 else 1)
    mesh = split_mesh(meshes.make_mesh(args[1]), groups)
    assert groups.parallel in (1, mesh.shape["data"])
    assert list(mesh.devices.flat) == jax.devices()[: args[1]]


def test_a_group_has_all_devices_along_model_or_one():
    mesh = meshes.make_mesh(2, 4)
    assert split_mesh(mesh, Groups(parallel=8)) == mesh
    assert split_mesh(mesh, Groups(parallel=2)) == mesh
    with pytest.raises(ConfigError, match=r"groups of 2 devices; with 4 along .* 1 or a multiple"):
        split_mesh(mesh, Groups(parallel=4))


def test_the_current_mesh_must_be_that_of_the_groups():
    step = functools.partial(mean_over_groups, lambda shared, x, _: x.mean(), Groups(parallel=4))
    with jax.set_mesh(meshes.make_mesh(8)), pytest.raises(ValueError, match="4 parallel groups"):
        jax.jit(step)(None, jnp.zeros(16))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((256, 8, None, 3), "multiple of 24, not 256"),
        ((256, 8, 48), "divide the 256 .* the 32 examples of each"),
        ((256, 8, 512), "divide the 256"),
        (
            (96, 8, 8),
            "divide the 12 examples of each",
        ),  # each device would have one group and a half
        ((256, 8, 128, 4), "divide the 64"),
    ],
)
def test_sizes_that_do_not_divide(args, words):
    with pytest.raises(ConfigError, match=words):
        plan(*args)
