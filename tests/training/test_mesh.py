"""Every mesh gives the results of a single device; impossible meshes are refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.data.augment import device
from densenet_jax.models.variants import create_model
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.losses import make_loss
from densenet_jax.training import eval_loop
from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.optimizer import make_optimizer
from densenet_jax.training.rundir.checkpoints import Checkpoints

SHAPE = (8, 8, 1)
TASK = Classification()
SPLIT_FROM = 64  # elements: most kernels of the tiny model
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

open_checkpoints = functools.partial(Checkpoints, score=find_task("classification").best.score)


def preprocess(key, images, labels):
    # No mixup: its shares are float32, whose last bit is the compiler's.
    targets = TASK.targets(labels, 10)
    images, targets = device.augment(key, images, targets, pad=1, flip=True)
    return device.normalize(images, (0.5,), (0.25,), jnp.float64), targets


def batches(mesh):
    rng = np.random.default_rng(0)
    while True:
        batch = {
            "image": rng.integers(0, 256, (16, *SHAPE), np.uint8),
            "label": rng.integers(0, 10, 16, np.int32),
        }
        yield jax.device_put(batch, meshes.batch_sharding(mesh))


@functools.cache
def setup(data: int, model: int):
    """Returns mesh, first state, compiled training step and evaluation step, in float64."""
    with jax.enable_x64():
        mesh = meshes.make_mesh(data, model)
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "dropout_rate": 0.2}
        # One layer, a transition, one layer.
        options |= {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8, "in_channels": 1}
        net = create_model("densenet_bc_100_12", num_classes=10, **options)
        optimizer = make_optimizer(lambda _: 0.1)
        fresh = functools.partial(states.initial_state, net, optimizer, 0, SHAPE)
        sharding = meshes.state_sharding(mesh, jax.eval_shape(fresh), SPLIT_FROM)
        state = jax.device_put(jax.jit(fresh).lower().compile(QUICK)(), sharding)
        loss = make_loss("cross_entropy", smoothing=0.1)
        step = steps.make_train_step(
            net, optimizer, lambda _: 0.1, preprocess, task=TASK, loss=loss
        )
        step = meshes.train_step_on(mesh, step, sharding).lower(state, next(batches(mesh)))
        normalize = lambda images: device.normalize(images, (0.5,), (0.25,), jnp.float64)  # noqa: E731
        eval_step = meshes.eval_step_on(mesh, eval_loop.make_eval_step(net, normalize, TASK, loss))
        return mesh, jax.device_get(state), sharding, step.compile(QUICK), eval_step


@functools.cache
def run(data: int, model: int):
    """Returns mesh, state, training metrics and evaluation after two steps in float64."""
    mesh, state, sharding, step, eval_step = setup(data, model)
    with jax.enable_x64():
        state, metrics = jax.device_put(state, sharding), []
        for _, batch in zip(range(2), batches(mesh), strict=False):
            state, measured = step(state, batch)
            metrics.append(jax.device_get(measured))
        masked = batch | {"mask": jax.device_put(np.arange(16) < 11, meshes.batch_sharding(mesh))}
        ((evaluated, _),) = eval_loop.evaluate(eval_step, [state.variables], [masked], TASK)
        return mesh, state, metrics, evaluated


AXES = [(8, 1), (1, 8), (2, 4)]


def test_the_presets_are_among_the_meshes_tried():
    sizes = {tuple(8 if s == -1 else s for s in axes) for _, axes in meshes.PRESETS.values()}
    assert sizes <= set(AXES)


@pytest.mark.parametrize("axes", AXES)
def test_a_mesh_gives_what_one_device_gives(axes):
    """Compares parameters, running statistics, and through the momentum the gradients, too."""
    _, one, metrics_one, scores_one = run(1, 1)
    _, many, metrics, scores = run(*axes)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)
    for a, b in zip([*metrics_one, scores_one], [*metrics, scores], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-10)


def test_a_run_goes_on_with_other_meshes(tmp_path):
    """Each step runs on another mesh, from the checkpoint of the step before."""
    way = [(8, 1), (1, 1), (2, 4), (2, 1), (1, 8), (2, 2), (8, 1)]  # 8, 1, 8, 2, 8, 4, 8 devices
    losses = {"changing": [], "one": []}
    with jax.enable_x64():
        for i, axes in enumerate(way):
            mesh, state, sharding, step, _ = setup(*axes)
            state = jax.device_put(state, sharding)
            with open_checkpoints(tmp_path) as checkpoints:
                state = checkpoints.resume(state) or state
                where = jax.tree.map(lambda x: x.sharding, state)
                assert where == jax.tree.map(lambda x: x.sharding, jax.device_put(state, sharding))
                state, metrics = step(state, next(itertools.islice(batches(mesh), i, None)))
                checkpoints.save(i + 1, state)
            losses["changing"].append(float(metrics["loss"]))
        mesh, one, sharding, step, _ = setup(1, 1)
        one = jax.device_put(one, sharding)
        for _, batch in zip(way, batches(mesh), strict=False):
            one, metrics = step(one, batch)
            losses["one"].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["changing"], losses["one"], rtol=1e-10)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("axes", AXES)
def test_a_state_stays_split_over_the_model_axis(axes):
    mesh, state, _, _ = run(*axes)
    parts = mesh.shape["model"]
    for tree in (state.params, state.opt_state):
        large = [x for x in jax.tree.leaves(tree) if x.size >= SPLIT_FROM]
        split = [x for x in large if any(length % parts == 0 for length in x.shape)]
        assert len(split) >= 4
        for x in split:
            assert x.addressable_shards[0].data.size == x.size // parts
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state.batch_stats))


def test_the_largest_dimension_that_divides_is_split():
    mesh = meshes.make_mesh(2, 4)
    shapes = {"kernel": (3, 3, 12, 8), "odd": (9, 99), "small": (8,), "scalar": ()}
    state = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
    found = meshes.state_sharding(mesh, state, 16)
    assert found["kernel"].spec == jax.sharding.PartitionSpec(None, None, "model")
    assert all(found[k].is_fully_replicated for k in ("odd", "small", "scalar"))


class Fake:
    """The attributes of a device that `make_mesh` uses."""

    def __init__(self, number, process, platform="gpu", slice_index=0):
        self.id, self.process_index, self.platform = number, process, platform
        self.slice_index, self.device_kind = slice_index, "H200"


def test_devices_of_a_process_are_neighbours():
    """On a TPU pod the chips of a process are not numbered consecutively."""
    devices = [Fake(i, process) for i, process in enumerate((0, 1, 0, 1, 2, 3, 2, 3))]
    mesh = meshes.make_mesh(4, 2, devices=devices)
    assert [[d.process_index for d in row] for row in mesh.devices] == [[p, p] for p in range(4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": 9}, "there are 8 devices"),
        ({"data": 4, "model": 4}, "there are 8 devices"),
        ({"data": 0}, "mesh.data is 0"),
        ({"model": 0}, "mesh.model is 0"),
        ({"data": -1, "model": -1}, "cannot both be -1"),
        ({"model": 3}, "mesh.model is 3, which does not divide the number of devices, 8"),
        ({"data": 3, "model": -1}, "mesh.data is 3, which does not divide"),
        ({"preset": "gpu"}, "JAX sees only cpu devices; is jax.cuda13. installed"),
        ({"preset": "tpu_fsdp"}, "JAX sees only cpu devices; is jax.tpu. installed"),
        ({"preset": "gpu", "model": 2}, "leave out either the preset, or config.mesh.data and"),
        ({"data": 4, "devices": [Fake(i, i // 4) for i in range(8)]}, "must use all of them"),
        ({"devices": [Fake(i, i // 5) for i in range(8)]}, r"have \[5, 3\] devices"),
    ],
)
def test_what_cannot_be_a_mesh(options, message):
    with pytest.raises(ConfigError, match=message):
        meshes.make_mesh(**options)


def test_a_preset_takes_every_device():
    devices = [Fake(i, i // 4, "tpu") for i in range(8)]
    assert meshes.make_mesh(preset="tpu", devices=devices).shape == {"data": 8, "model": 1}
    assert meshes.make_mesh(preset="tpu_fsdp", devices=devices).shape == {"data": 1, "model": 8}


def test_the_description_has_a_line_a_device_or_a_process():
    few = meshes.describe(meshes.make_mesh(devices=[Fake(i, i // 4) for i in range(8)]))
    assert len(few) == 1 + 8
    assert few[0].startswith("mesh: 8 along data x 1 along model, 8 device(s) in 2 process(es)")
    assert few[-1] == "  data 7, model 0: gpu:7 H200, process 1"
    many = meshes.describe(meshes.make_mesh(devices=[Fake(i, i // 8) for i in range(64)]))
    assert many[1:] == [f"  process {p}: 8 x H200, gpu:{8 * p} to {8 * p + 7}" for p in range(8)]
    most = meshes.describe(meshes.make_mesh(devices=[Fake(i, i // 4) for i in range(1000)]))
    assert len(most) == 33
    assert most[-1] == "  ... and 219 more processes like these"
