"""Checkpoints that are damaged, incomplete or could not be written are never loaded."""

import contextlib
import functools
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax import atomic_files
from densenet_jax.tasks.by_name import find_task
from densenet_jax.training import state as states
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import checksums
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.checksums import SEAL

OPTIMIZER = optax.sgd(0.1, momentum=0.9)

open_checkpoints = functools.partial(Checkpoints, score=find_task("classification").best.score)


def make_state(step: int, size: int = 100) -> states.TrainState:
    values = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return states.from_variables({"params": {"w": jnp.asarray(values)}}, OPTIMIZER).replace(
        step=jnp.int32(step)
    )


@pytest.fixture
def workdir(tmp_path):
    """A run with checkpoints 1 to 4, the best at 2."""
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8)):
            checkpoints.save(step, make_state(step), {"top1": top1})
    return tmp_path


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    return max(files, key=lambda p: p.stat().st_size)


def flip_a_bit(folder: pathlib.Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: pathlib.Path) -> None:
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-10])


def half_delete(folder: pathlib.Path) -> None:
    shutil.rmtree(next(p for p in folder.iterdir() if p.is_dir()))


def never_sealed(folder: pathlib.Path) -> None:
    (folder / SEAL).unlink()


def test_the_latest_ones_and_the_best_are_kept(workdir):
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        assert checkpoints.resolve("best") == 2
        assert checkpoints.resolve("latest") == 4
        _, restored = checkpoints.restore(2, make_state(0))
    np.testing.assert_array_equal(restored.params["w"], make_state(2).params["w"])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, half_delete, never_sealed])
def test_damage_is_named_and_the_one_before_is_used(workdir, damage, caplog):
    damage(workdir / "checkpoints" / "4")
    with open_checkpoints(workdir) as checkpoints:
        state = checkpoints.resume(make_state(0))
        assert int(state.step) == 3
        np.testing.assert_array_equal(state.params["w"], make_state(3).params["w"])
        assert "Checkpoint 4" in caplog.text
        assert "is not used" in caplog.text
        checkpoints.save(4, make_state(4))  # reached again: written anew
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.resolve("latest") == 4


def test_several_without_a_sound_one_are_refused_and_kept(workdir):
    for step in (2, 3, 4):
        never_sealed(workdir / "checkpoints" / str(step))
    before = sorted(workdir.rglob("*"))
    with open_checkpoints(workdir) as checkpoints:
        for resolve in (lambda: checkpoints.resolve("best"), lambda: checkpoints.resume(None)):
            with pytest.raises(CheckpointError, match=r"no intact checkpoint .*4: .*no SHA256SUMS"):
                resolve()
        assert checkpoints.steps() == [2, 3, 4]
    assert sorted(workdir.rglob("*")) == before


def test_a_first_checkpoint_that_was_not_completed_is_a_fresh_start(workdir):
    """What a run leaves that was killed while it wrote it; it is set aside, not deleted."""
    for step in (2, 3):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    never_sealed(workdir / "checkpoints" / "4")
    with open_checkpoints(workdir) as checkpoints:
        assert checkpoints.resume(make_state(0)) is None
        assert checkpoints.steps() == []
    assert any((workdir / "checkpoints_unsound" / "4").iterdir())


def test_a_damaged_checkpoint_behind_a_link_keeps_its_files(workdir, tmp_path):
    """Only the link is moved."""
    folder, elsewhere = workdir / "checkpoints" / "4", tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    never_sealed(elsewhere)
    files = sorted(elsewhere.rglob("*"))
    with open_checkpoints(workdir) as checkpoints:
        assert int(checkpoints.resume(make_state(0)).step) == 3
    assert sorted(elsewhere.rglob("*")) == files
    assert (workdir / "checkpoints_unsound" / "4").is_symlink()


def test_a_checkpoint_that_cannot_be_read_is_an_error(workdir, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "some file")

    monkeypatch.setattr(checksums, "_digests", denied)
    with (
        open_checkpoints(workdir) as checkpoints,
        pytest.raises(CheckpointError, match="some file cannot be read"),
    ):
        checkpoints.resume(make_state(0))
    assert len(list((workdir / "checkpoints").iterdir())) >= 3


def test_a_damaged_checkpoint_is_not_restored_on_request(workdir):
    flip_a_bit(workdir / "checkpoints" / "2")
    with (
        open_checkpoints(workdir, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="checksum differs"),
    ):
        checkpoints.restore(2, make_state(0))


TAMPERED = ("", "null", "[]", "{}", "7", "[" * 50_000, '{"a": {"b": [1]}}', "\0\xff")


@pytest.mark.parametrize("text", TAMPERED, ids=range(len(TAMPERED)))
def test_files_that_somebody_changed_and_sealed_again_raise_nothing_else(workdir, text):
    """Whoever can change a file can write its checksum."""
    step = workdir / "checkpoints" / "4"
    for name in ("_CHECKPOINT_METADATA", "metrics/metrics", "default/_METADATA"):
        path = step / name
        content = path.read_bytes()
        path.write_text(text, encoding="latin-1")
        checksums.seal(step)
        for which in ("latest", "best"):
            with contextlib.suppress(CheckpointError):
                open_and_restore(workdir, which)
        path.write_bytes(content)
    checksums.seal(step)
    assert open_and_restore(workdir, "latest") == 4


def open_and_restore(workdir: pathlib.Path, which: str) -> int:
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(which, make_state(0))[0]


def test_metrics_that_cannot_be_used_are_those_of_no_best_checkpoint(workdir, caplog):
    (workdir / "checkpoints" / "2" / "metrics" / "metrics").write_text('{"top1": "high"}')
    checksums.seal(workdir / "checkpoints" / "2")
    assert open_and_restore(workdir, "best") == 4
    assert "The metrics of checkpoint 2 cannot be used" in caplog.text


def test_a_pipe_among_the_files_is_refused_instead_of_waited_for(workdir):
    path = workdir / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="_CHECKPOINT_METADATA cannot be read: it is not a"):
        open_checkpoints(workdir, read_only=True)


def test_another_shape_is_an_error_not_a_guess(workdir):
    with (
        open_checkpoints(workdir, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="is of another model"),
    ):
        checkpoints.restore(2, make_state(0, size=50))


def test_a_run_goes_on_in_float16_and_back(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kinds = {name: make_state(1) for name in ("float32", "float16")}
    scale = states.initial_loss_scale().replace(scale=jnp.float32(8))
    kinds["float16"] = kinds["float16"].replace(loss_scale=scale)
    found = {}
    for before, state in kinds.items():
        with open_checkpoints(tmp_path / before) as checkpoints:
            checkpoints.save(1, state, {"top1": 0.5})
            for after, target in kinds.items():
                abstract = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), target
                )
                restored = checkpoints.resume(abstract)
                np.testing.assert_array_equal(restored.params["w"], state.params["w"])
                found[before, after] = restored.loss_scale and float(restored.loss_scale.scale)
    assert found == {
        ("float32", "float32"): None,
        ("float32", "float16"): 2.0**16,
        ("float16", "float32"): None,
        ("float16", "float16"): 8,
    }


def test_a_save_that_fails_keeps_the_last_and_later_ones_succeed(workdir, monkeypatch, caplog):
    with open_checkpoints(workdir) as checkpoints:
        manager = checkpoints._manager

        def full(*_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: no space left on device")

        monkeypatch.setattr(manager, "save", full)
        checkpoints.save(5, make_state(5))
        monkeypatch.undo()
        assert "no space left" in caplog.text
        assert checkpoints.resolve("latest") == 4
        assert "could not be saved" in checkpoints.missing(5)
        assert "of step 4" in checkpoints.missing(5)
        checkpoints.save(6, make_state(6))
        assert checkpoints.missing(6) is None
        assert checkpoints.resolve("latest") == 6


def test_a_seal_is_on_the_disk_after_its_files(tmp_path, monkeypatch):
    """A power cut must not leave empty files with a checksum file beside them."""
    (tmp_path / "1" / "folder").mkdir(parents=True)
    (tmp_path / "1" / "folder" / "array").write_text("numbers")
    flushed = []
    monkeypatch.setattr(atomic_files, "flush", lambda path: flushed.append(path.name))
    checksums.seal(tmp_path / "1")
    assert set(flushed[:4]) == {"array", "folder", "1", tmp_path.name}
    assert flushed[4].startswith(".SHA256SUMS.")
    assert flushed[5:] == ["1"]
    (tmp_path / "1" / flushed[4]).touch()  # as if it had been killed
    checksums.seal(tmp_path / "1")
    assert "tmp" not in (tmp_path / "1" / SEAL).read_text()
    assert checksums.unsound(tmp_path / "1") is None
