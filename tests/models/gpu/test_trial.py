"""The trial of the GPU kernels on hardware that nobody tried, without a GPU."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models.block import implementations, plain
from densenet_jax.models.gpu import backward, forward, trial
from densenet_jax.models.gpu.stages import KERNELS, Stages

SIZES = ("bfloat16", 32, 16)


@pytest.fixture
def seconds(monkeypatch):
    """The times that a trial finds; the tests set them."""
    found = {"gpu": 1.0, "plain": 2.0}
    monkeypatch.setattr(
        trial, "_seconds", lambda name, *_: found["plain" if name == "plain" else "gpu"]
    )
    return found


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU, as far as the choice of an implementation looks at one, and an empty cache."""
    device = types.SimpleNamespace(
        device_kind="NVIDIA Unknown",
        compute_capability="8.9",
        client=types.SimpleNamespace(platform_version="cuda 13000"),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    implementations._say_plain.cache_clear()
    trial.VERDICTS.clear()
    yield device
    trial.VERDICTS.clear()


def block(width=32, growth=16):
    layer = [(None, jnp.zeros((1, 1, 8, width))), (None, jnp.zeros((3, 3, width, growth)))]
    return jnp.zeros((2, 4, 4, 8), jnp.bfloat16), [layer]


def chosen(implementation="auto", **sizes):
    return implementations.choose(implementation, *block(**sizes), 0.0)


def test_wrong_and_broken_kernels_are_named(monkeypatch, seconds):
    right = forward.conv1x1

    def wrong(*args, **options):
        y, *sums = right(*args, **options)
        return y.at[-1, -1].add(1), *sums  # a mask that is off by one

    def broken(*args, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded\nmore")

    monkeypatch.setattr(forward, "conv1x1", wrong)
    monkeypatch.setattr(backward, "conv1x1", broken)
    monkeypatch.setattr(trial, "SHAPES", trial.SHAPES[:1])
    cases = trial.cases
    monkeypatch.setattr(trial, "cases", lambda *a: (c for c in cases(*a) if "1x1" in c.kernel))
    faults, times = trial.examine(Stages(interpret=True), *SIZES)
    # Layers and transitions share a kernel forward.
    assert faults.keys() == {"1x1 forward", "1x1 pooled forward", "1x1 backward"}
    assert faults["1x1 forward"].startswith("its result differs by 0.")
    expected = "it does not run (RESOURCE_EXHAUSTED: Shared memory size limit exceeded)"
    assert faults["1x1 backward"] == expected
    assert times == {"gpu": 1.0, "plain": 2.0}


def test_nan_is_a_difference():
    assert trial._difference(jnp.array([1.0, jnp.nan]), jnp.ones(2)) == np.inf


def test_plain_jax_takes_the_place_of_a_kernel(monkeypatch):
    for name in ("forward", "backward", "backward_together", "stem", "stem_gradient"):
        monkeypatch.setattr(plain, name, lambda *args, **options: (args, options))
    stages = Stages.of(Stages(interpret=True).without(KERNELS))
    assert stages == Stages(True, frozenset(KERNELS))
    for case in trial.cases(*trial.SHAPES[0], 32, 16, "bfloat16"):
        args, options = getattr(stages, case.function)(
            *case.arguments, **case.arrays, **case.static
        )
        assert args == case.arguments
        given = {**case.arrays, **case.static}
        assert all(options[name] is value for name, value in given.items())


@pytest.mark.parametrize(
    ("faults", "plain_seconds", "auto", "asked"),
    [
        ([], 2.0, "gpu", "gpu"),
        ([], 0.5, "plain", "gpu"),  # slower than plain JAX: only if asked for
        (["1x1 backward"], 2.0, "gpu without 1x1 backward", "gpu without 1x1 backward"),
        (KERNELS, 2.0, "plain", "plain"),
    ],
)
def test_choice_on_a_gpu(gpu, monkeypatch, caplog, faults, plain_seconds, auto, asked):
    seconds = {} if faults == KERNELS else {"gpu": 1.0, "plain": plain_seconds}
    x, layers = block()

    def examine(*_):
        assert x.sum() == 0  # a traced number has no truth value
        return trial.Verdict(dict.fromkeys(faults, "a reason"), seconds)

    monkeypatch.setattr(trial, "examine", examine)
    # The first use may be inside a traced function.
    found = []

    @jax.jit
    def traced(x):
        found.append(implementations.choose("auto", x, layers, 0.0))
        return x

    traced(x)
    assert [*found, chosen(), chosen("gpu")] == [auto, auto, asked]
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == bool(faults)
    assert all(f"{kernel}: a reason" in w for w in warnings for kernel in faults)
    assert all("NVIDIA Unknown" in w for w in warnings)


DAMAGE = [
    *("", "{", "[1]", '{"faults": {}}', "\0" * 99, "[" * 9999),
    '{"faults": {"other": "x"}, "seconds": {}}',
    '{"faults": {}, "seconds": {"gpu": NaN, "plain": 1}}',
    '{"faults": {}, "seconds": {"gpu": "1", "plain": 1}}',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_verdicts_are_kept_and_damaged_ones_made_again(gpu, monkeypatch, tmp_path, damage):
    calls = []

    def examine(*args):
        calls.append(args)
        return trial.Verdict({}, {"gpu": 1.0, "plain": 2.0})

    monkeypatch.setattr(trial, "examine", examine)
    first = trial.verdict(*SIZES)
    trial.VERDICTS.clear()  # another process
    assert trial.verdict(*SIZES) == first
    assert len(calls) == 1
    (path,) = (tmp_path / "densenet_jax" / "gpu").glob("*.json")
    assert json.loads(path.read_text())["device"] == "NVIDIA Unknown"
    path.write_text(damage)
    trial.VERDICTS.clear()
    assert trial.verdict(*SIZES) == first
    assert len(calls) == 2
    gpu.client.platform_version = "cuda 14000"
    trial.VERDICTS.clear()
    trial.verdict(*SIZES)
    assert len(calls) == 3


def test_an_unwritable_cache_and_a_full_gpu_are_tried_again(gpu, monkeypatch, tmp_path):
    verdict = trial.Verdict({}, {"gpu": 1.0, "plain": 2.0})
    monkeypatch.setattr(trial, "examine", lambda *_: verdict)
    (tmp_path / "densenet_jax").write_text("a file where the folder should be")
    assert trial.verdict(*SIZES) == verdict
    (tmp_path / "densenet_jax").unlink()
    full = trial.Verdict({"1x1 forward": "it does not run (Out of memory)"}, verdict.seconds)
    untimed = trial.Verdict({}, {})
    for found in (full, untimed):
        monkeypatch.setattr(trial, "examine", lambda *_, found=found: found)
        trial.VERDICTS.clear()
        assert trial.verdict(*SIZES) == found
    assert not list(tmp_path.rglob("*.json"))


def test_all_processes_take_the_verdict_of_process_0(gpu, monkeypatch):
    from jax._src import distributed

    store = {}
    client = types.SimpleNamespace(
        key_value_set=lambda name, value, allow_overwrite: store.update({name: value}),
        blocking_key_value_get=lambda name, _: store[name],
    )
    monkeypatch.setattr(distributed.global_state, "client", client)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    verdict = trial.Verdict({"3x3 forward": "a reason"}, {"gpu": 1.0, "plain": 2.0})
    monkeypatch.setattr(trial, "examine", lambda *_: verdict)
    assert trial.verdict(*SIZES) == verdict
    trial.VERDICTS.clear()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(trial, "examine", None)  # process 1 tries nothing
    assert trial.verdict(*SIZES) == verdict


@pytest.mark.parametrize("capability", ["7.5", "gfx90a", ""])
@pytest.mark.parametrize("implementation", ["auto", "gpu"])
def test_other_gpus_are_said_to_run_plain_jax(gpu, caplog, capability, implementation):
    gpu.compute_capability = capability
    assert [chosen(implementation), chosen(implementation)] == ["plain", "plain"]
    assert len(caplog.records) == 1
    assert f"compute capability 8.0 or newer, and this is {gpu.device_kind}" in caplog.text


def test_several_gpus_without_a_mesh_are_said_to_run_plain_jax(gpu, monkeypatch, caplog):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert chosen() == "plain"
    assert "there are 2 GPUs and no mesh; call jax.set_mesh" in caplog.text
