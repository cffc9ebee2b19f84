"""The training step: what it changes, and its independence of the number of devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax.data.augment import device
from densenet_jax.models.variants import create_model
from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.losses import make_loss
from densenet_jax.training import eval_loop
from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.groups import Groups
from densenet_jax.training.optimizer import make_optimizer
from densenet_jax.training.schedules import make_schedule

SHAPE = (8, 8, 1)
TASK = Classification()
CROSS_ENTROPY = make_loss("cross_entropy")


def preprocess(key, images, labels):
    # No mixup: its shares are float32, whose last bit is the compiler's.
    targets = TASK.targets(labels, 10)
    images, targets = device.augment(key, images, targets, pad=1, flip=True)
    return device.normalize(images, (0.5,), (0.25,), jnp.float64), targets


def fresh_state(model, optimizer, mesh) -> states.TrainState:
    init = functools.partial(states.initial_state, model, optimizer, 0, SHAPE)
    return jax.jit(init, out_shardings=meshes.replicated(mesh))()


def run(devices: int, count: int = 3):
    """Returns the state and the metrics after some steps in float64 on a mesh of `devices`."""
    with jax.enable_x64():
        mesh = meshes.make_mesh(devices)
        model = create_model(
            "densenet_cifar",
            depth=10,
            growth_rate=4,
            in_channels=1,
            dropout_rate=0.2,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )
        schedule = make_schedule("constant", learning_rate=0.1, total_steps=10)
        optimizer = make_optimizer(schedule)
        state = fresh_state(model, optimizer, mesh)
        loss = make_loss("cross_entropy", smoothing=0.1)
        step = steps.make_train_step(model, optimizer, schedule, preprocess, task=TASK, loss=loss)
        rng = np.random.default_rng(0)
        sharding = meshes.batch_sharding(mesh)
        batch = {
            "image": jax.device_put(rng.integers(0, 256, (16, *SHAPE), np.uint8), sharding),
            "label": jax.device_put(rng.integers(0, 10, 16, np.int32), sharding),
        }
        first = jax.tree.map(np.asarray, state)
        metrics = []
        for _ in range(count):
            state, measured = step(state, batch)
            metrics.append(jax.device_get(measured))
        return first, jax.device_get(state), metrics


@pytest.fixture(scope="module")
def one_device():
    return run(1)


def test_a_step_changes_everything_that_it_should(one_device):
    first, last, metrics = one_device
    assert int(last.step) == 3
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), first, last)
    assert jax.tree.all(changed.params)
    assert jax.tree.all(changed.batch_stats)
    assert metrics[-1]["loss"] < metrics[0]["loss"]  # the same batch again and again
    assert metrics[0]["learning_rate"] == np.float32(0.1)


def test_what_is_random_depends_on_seed_and_step_alone():
    class Model:
        """A model whose logits are the images' mean, so that augmentation changes the loss."""

        @staticmethod
        def apply(variables, images, **_):
            return variables["params"] * images.mean((1, 2)), {}

    def losses(seed: int, start: int) -> list[float]:
        optimizer = optax.sgd(0.0)
        step = steps.make_train_step(
            Model,
            optimizer,
            lambda _: 0.0,
            lambda key, images, labels: (
                jax.random.normal(key, (*images.shape[:3], 10)),
                TASK.targets(labels, 10),
            ),
            task=TASK,
            loss=CROSS_ENTROPY,
            seed=seed,
        )
        state = states.from_variables({"params": jnp.ones(())}, optimizer)
        state, seen = state.replace(step=jnp.int32(start)), []
        for _ in range(3):
            state, metrics = step(state, batch)
            seen.append(float(metrics["loss"]))
        return seen

    batch = {"image": jnp.zeros((4, *SHAPE), jnp.uint8), "label": jnp.zeros(4, jnp.int32)}
    run = losses(seed=0, start=0)
    assert len(set(run)) == 3
    assert losses(seed=0, start=1)[:2] == run[1:]  # as a run that resumes after step 1
    assert not set(losses(seed=1, start=0)) & set(run)


def test_evaluation_uses_running_statistics_and_the_mask():
    model = create_model("densenet_cifar", depth=10, growth_rate=4, in_channels=1)
    state = fresh_state(model, optax.sgd(0.1), meshes.make_mesh(1))
    normalize = lambda images: device.normalize(images, (0.5,), (0.25,), jnp.float32)  # noqa: E731
    eval_step = eval_loop.make_eval_step(model, normalize, TASK, CROSS_ENTROPY)
    images = np.random.default_rng(1).integers(0, 256, (4, *SHAPE), np.uint8)
    labels = np.arange(4, dtype=np.int32)
    batch = {"image": images, "label": labels, "mask": np.array([True, True, True, False])}
    logits = model.apply(state.variables, normalize(images))
    expected = CROSS_ENTROPY(logits, TASK.targets(labels, 10))[:3].sum()
    got, answers = eval_step(state.variables, batch)
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-5)
    assert int(got["examples"]) == 3
    np.testing.assert_array_equal(answers["classes"][:, 0], logits.argmax(1))
    np.testing.assert_allclose(-np.log(answers["own"][:3]).sum(), expected, rtol=1e-5)


@pytest.mark.parametrize(("size", "words"), [(12, "8 or 16"), (0, "must be a positive multiple")])
def test_batches_that_cannot_be_split(size, words):
    with pytest.raises(ConfigError, match=words):
        meshes.check_batch_size("batch_size", size, meshes.make_mesh(8))


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    model = create_model("densenet_cifar", depth=10, growth_rate=4, in_channels=1)
    optimizer = make_optimizer(lambda _: 0.1)
    state = fresh_state(model, optimizer, meshes.make_mesh(1))
    poison = jnp.array([1.0, jnp.nan, jnp.inf, 1.0])

    def poisoned(_, images, labels):
        kind = images[0, 0, 0, 0]
        return device.normalize(images, (0.5,), (0.25,), jnp.float32) * poison[kind], TASK.targets(
            labels, 10
        )

    step = steps.make_train_step(
        model, optimizer, lambda _: 0.1, poisoned, task=TASK, loss=CROSS_ENTROPY
    )
    rng = np.random.default_rng(0)
    counts = []
    for kind in (0, 1, 2, 3):
        images = rng.integers(0, 256, (4, *SHAPE), np.uint8)
        images[0, 0, 0, 0] = kind
        before = jax.device_get(state)
        state, metrics = step(state, {"image": images, "label": np.arange(4, dtype=np.int32)})
        after = jax.device_get(state)
        counts.append(int(metrics["nonfinite"]))
        same = jax.tree.map(np.array_equal, before.variables, after.variables)
        assert jax.tree.all(same) == (kind in (1, 2))
        assert int(after.step) == int(before.step) + 1
    assert counts == [0, 1, 2, 0]


class Half:
    """A model that multiplies by one parameter in float16, where numbers end at 65,504."""

    dtype = jnp.float16

    @staticmethod
    def apply(variables, images, **_):
        return (variables["params"].astype(Half.dtype) * images).astype(jnp.float32), {}


@pytest.mark.parametrize(
    "groups", [Groups(), Groups(accumulate=2)], ids=["one group", "two groups"]
)
def test_in_float16_the_loss_is_scaled_as_the_gradients_allow(groups):
    # The gradient of the loss is 2 ** -26 for an image of 1: without a scale it would be 0.
    def losses(logits, targets):
        return logits[:, 0] * 2.0**-26

    def inputs(_, images, labels):
        return images.astype(jnp.float16), TASK.targets(labels, 1)

    def step_of(scale, image, finite_steps=0, **options):
        options |= {"task": TASK, "loss": losses, "groups": groups}
        state = states.from_variables({"params": jnp.ones(())}, optimizer, dtype=Half.dtype)
        steps_so_far = state.loss_scale.replace(
            scale=jnp.float32(scale), fin_steps=jnp.int32(finite_steps)
        )
        state = state.replace(loss_scale=steps_so_far, nonfinite=jnp.int32(0))
        step = steps.make_train_step(Half, optimizer, lambda _: 0.5, inputs, **options)
        images = jnp.full((4, 1), image)
        state, metrics = step(state, {"image": images, "label": jnp.zeros(4, jnp.int32)})
        return float(state.params), float(state.loss_scale.scale), int(metrics["nonfinite"])

    optimizer = optax.sgd(2.0**16)  # a step of 2 ** -10
    assert step_of(2.0**16, 1.0) == (1 - 2.0**-10, 2.0**16, 0)
    assert step_of(2.0**16, 1.0, finite_steps=2000)[1] == 2.0**17
    assert step_of(2.0**40, 2.0**10) == (1.0, 2.0**39, 1)  # 2 ** 24 overflows
    assert step_of(2.0**40, 2.0**10, nonfinite_limit=0) == (1.0, 2.0**40, 1)  # nothing changes


def test_averages_follow_what_trains_and_forget_where_they_began():
    model = create_model("densenet_cifar", depth=10, growth_rate=4, in_channels=1)
    optimizer = make_optimizer(lambda _: 0.1)
    mesh = meshes.make_mesh(1)
    init = functools.partial(states.initial_state, model, optimizer, 0, SHAPE, ema=True)
    state = jax.jit(init, out_shardings=meshes.replicated(mesh))()

    def plain(_, images, labels):
        images = device.normalize(images, (0.5,), (0.25,), jnp.float32)
        return images, TASK.targets(labels, 10)

    step = steps.make_train_step(
        *(model, optimizer, lambda _: 0.1, plain), task=TASK, loss=CROSS_ENTROPY, ema_decay=0.15
    )
    rng = np.random.default_rng(0)
    averages = jax.device_get(state.variables)
    for t in range(3):
        images = rng.integers(0, 256, (4, *SHAPE), np.uint8)
        state, _ = step(state, {"image": images, "label": np.arange(4, dtype=np.int32)})
        decay = min(0.15, (1 + t) / (10 + t))
        new = jax.device_get(state.variables)
        averages = jax.tree.map(lambda a, v: decay * a + (1 - decay) * v, averages, new)  # noqa: B023
    assert state.result is state.ema
    chex.assert_trees_all_close(state.ema, averages, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.ema, state.variables)
    assert jax.tree.all(moved)  # running statistics, too
    assert fresh_state(model, optimizer, mesh).ema is None
