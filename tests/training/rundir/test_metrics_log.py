"""metrics.jsonl has whole lines and each step once, even if the disk fails."""

import json
import os

import pytest

from densenet_jax.training.rundir import metrics_log
from densenet_jax.training.rundir.metrics_log import MetricsLog


def test_resuming_forgets_what_lies_beyond(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    with MetricsLog(path, resume_step=3) as log:
        assert log.last == {"step": 3}
        log.write({"step": 4})
    assert [r["step"] for r in metrics_log.read(path)] == [1, 2, 3, 4]


class FullDisk:
    """A raw file that accepts only a few more bytes, like a disk that fills up."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


class ReadOnly:
    """A raw file on a disk that has become read-only: it cannot be written or truncated."""

    def __init__(self, file):
        self.file = file

    def write(self, data: bytes) -> int:
        raise OSError(30, "Read-only file system")

    def fileno(self) -> int:
        raise OSError(30, "Read-only file system")


def test_a_full_disk_tears_no_line_and_loses_none(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        disk = log._file = FullDisk(log._file, room=5)
        log.write({"step": 2})
        log.write({"step": 3})
        assert path.read_text() == '{"step": 1}\n'
        assert caplog.text.count("cannot be written") == 1  # once a minute, not once a step
        disk.room = 1000
        log.write({"step": 4})
        disk.room = 20
        log.write({"step": 5})
        log.write({"step": 6})
        assert path.read_text().endswith('{"step": 5}\n')  # what fits is there
        disk.room = 1000
        log._file = ReadOnly(disk)
        log.write({"step": 7})
        log._file = disk
        log.write({"step": 8})
    assert [r["step"] for r in metrics_log.read(path)] == list(range(1, 9))


def test_lines_are_json_objects(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": 0.5})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_reading_what_does_not_exist(tmp_path):
    assert metrics_log.read(tmp_path / "metrics.jsonl") == []


def test_lines_that_no_run_has_written_are_counted_and_left_out(tmp_path, caplog):
    odd = [
        *("[" * 100_000, "\0", "[1]", '{"loss": 1}', '{"step": "1"}', '{"step": -1}'),
        *('{"step": 1e3}', '{"step": NaN}', f'{{"step": 1, "loss": {"9" * 4000}}}'),
        *(f'{{"step": 1, "loss": {10**30}}}', f'{{"step": 1, "a": "{"b" * 2**21}"}}'),
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(["", '{"step": 1}', *odd, '{"step": 2}', '{"step": 3']))
    assert metrics_log.read(path) == [{"step": 1}, {"step": 2}]
    assert f"{len(odd) + 1} damaged lines are left out" in caplog.text


@pytest.mark.parametrize("text", ["", "{", '{"step": 1}'])
def test_a_torn_first_line_is_no_record(tmp_path, text):
    (tmp_path / "m.jsonl").write_text(text)
    assert metrics_log.read(tmp_path / "m.jsonl") == []
