"""TensorBoard and W&B get the records of metrics.jsonl, each step once, even after failures."""

import importlib
import pathlib
import struct
import time
from collections.abc import Iterator

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from densenet_jax.training import loop
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import loggers
from densenet_jax.training.rundir.metrics_log import MetricsLog


def config(**changes):
    found = importlib.import_module("configs.digits").get_config()
    found.update_from_flattened_dict(changes)
    return found


def record(step: int, split: str = "train", **values) -> dict:
    place = {"step": step, "epoch": step / 10, "split": split}
    return {**place, "loss": 1.0 / step, **values, "seconds": float(step)}


def write(workdir: pathlib.Path, name: str, resume_step: int, steps) -> None:
    """Writes the records of some steps, as the training loop does."""
    listeners = loggers.open_loggers([name], workdir, config())
    with MetricsLog(workdir / "metrics.jsonl", resume_step, listeners) as log:
        for step in steps:
            log.write(record(step))


def tensorboard(workdir: pathlib.Path) -> dict[str, list]:
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def wandb_records(data: bytes) -> Iterator[Record]:
    """Yields the records of a .wandb file: 7 bytes of W&B's own, then LevelDB's log format."""
    at, whole = 7, b""
    while len(data) - at > 7:
        if 32768 - at % 32768 < 7:  # no room for a header: the next block
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_rows(workdir: pathlib.Path) -> list[list[dict[str, str]]]:
    """Returns the history that each start of a run has left for `wandb sync`."""
    starts = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for _ in range(3000):  # a process of W&B's own may still be writing
            records = list(wandb_records(path.read_bytes()))
            if records and records[-1].HasField("exit"):
                break
            time.sleep(0.01)
        rows = [record.history.item for record in records if record.HasField("history")]
        starts.append([{i.key or i.nested_key[0]: i.value_json for i in row} for row in rows])
    return starts


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_tensorboard_has_every_number_at_its_step_and_time(tmp_path):
    listeners = loggers.open_loggers(["tensorboard"], tmp_path, config())
    with MetricsLog(tmp_path / "metrics.jsonl", 0, listeners) as log:
        log.write(record(1, top1=0.25))
        log.write(record(2, loss=None))  # was not finite
        log.write(record(2, "eval", top1=0.5))
    scalars = tensorboard(tmp_path)
    assert [(e.step, e.value) for e in scalars["train/loss"]] == [(1, 1.0)]
    assert [(e.step, e.value) for e in scalars["eval/top1"]] == [(2, 0.5)]
    assert {"train/epoch", "train/seconds"} <= set(scalars)
    assert not {"train/step", "train/split"} & set(scalars)


def test_tensorboard_has_no_step_twice_and_a_half_written_one_again(tmp_path):
    write(tmp_path, "tensorboard", 0, range(1, 6))
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.write_bytes(old.read_bytes()[:100])  # killed: what had not been flushed is lost
    write(tmp_path, "tensorboard", 3, range(4, 8))  # in the same second
    losses = tensorboard(tmp_path)["train/loss"]
    assert [e.step for e in losses] == [1, 2, 3, 4, 5, 6, 7]
    assert losses[2].wall_time - losses[0].wall_time == pytest.approx(2.0, abs=1e-3)


def test_a_tensorboard_that_is_running_forgets_what_was_undone(tmp_path):
    write(tmp_path, "tensorboard", 0, range(1, 6))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    write(tmp_path, "tensorboard", 3, [4])
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    write(tmp_path, "tensorboard", 4, [5])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [e.step for e in tensorboard(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]


def test_a_logger_chosen_late_has_the_whole_run(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(record(1))
    write(tmp_path, "tensorboard", 1, [2])
    assert [e.step for e in tensorboard(tmp_path)["train/loss"]] == [1, 2]


def test_wandb_offline_has_each_step_once_over_all_starts(tmp_path):
    write(tmp_path, "wandb", 0, range(1, 6))
    write(tmp_path, "wandb", 3, range(4, 8))  # 4 and 5 are repeated, to the bit
    starts = wandb_rows(tmp_path)
    assert [[row["_step"] for row in rows] for rows in starts] == [list("12345"), list("67")]
    assert starts[0][1]["train/loss"] == "0.5"
    (identity,) = {path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert identity == "run-" + (tmp_path / "wandb" / "run_id").read_text()


def test_wandb_that_lets_nobody_in_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match="No API key configured; with WANDB_MODE=offline"):
        loggers.open_loggers(["wandb"], tmp_path, config())


def test_a_missing_package_and_a_misspelt_logger_are_told_before_anything_is_made(
    tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match="'tensorbord'; there are tensorboard, wandb"):
        loop.train_and_evaluate(config(loggers=("tensorbord",)), workdir)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for names in [("tensorboard",), ("wandb,tensorboard",)]:
        with pytest.raises(ConfigError, match="pip install"):
            loop.train_and_evaluate(config(loggers=names), workdir)
    assert not workdir.exists()


class Broken:
    """A listener all of whose methods fail."""

    def __init__(self):
        self.told = []

    def __getattr__(self, what):
        def fail(*_):
            self.told.append(what)
            raise OSError(f"cannot {what}")

        return fail


def test_a_listener_that_fails_harms_nobody(tmp_path, caplog):
    broken = Broken()
    with MetricsLog(tmp_path / "metrics.jsonl", 0, [broken]) as log:
        for step in (1, 2):
            log.write(record(step))
        log.rewind(1)
    assert broken.told == ["restart", "write", "write", "restart", "close"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert [r.getMessage() for r in caplog.records] == ["Broken: cannot restart; the run goes on."]


def test_a_run_that_stops_with_an_error_says_so(tmp_path):
    closed = []

    class Last(Broken):
        def close(self, failed):
            closed.append(failed)

    for error in (None, RuntimeError):
        try:
            with MetricsLog(tmp_path / "metrics.jsonl", 0, [Last()]):
                if error:
                    raise error
        except RuntimeError:
            pass
    assert closed == [False, True]
