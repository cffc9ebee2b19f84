"""A result that could not be written is printed, and an error says so."""

import errno

import pytest

from densenet_jax.cli.commands import evaluating
from densenet_jax.tasks.by_name import find_task
from densenet_jax.training.errors import ConfigError


def test_a_result_that_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    def full(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(evaluating.atomic_files, "write", full)
    monkeypatch.setattr(evaluating.tables, "show", lambda record, task: print("the table"))
    task = find_task("classification")
    record = {"top1": 0.5, "top5": 0.75, "loss": 1.0, "examples": 4}
    with pytest.raises(ConfigError, match=r"evaluation\.json cannot be written .* only printed"):
        evaluating.write_evaluation(tmp_path, record, None, task.outputs, task)
    out = capsys.readouterr().out
    assert "the table" in out
    assert "50.00%" in out
    assert "written to" not in out
