"""The history of a run: exact for short runs, means of blocks for long ones."""

import json

import numpy as np
import pytest

from densenet_jax.report import history
from densenet_jax.tasks.by_name import find_task

BEST = find_task("classification").best


def records(count: int) -> list[dict]:
    return [
        {"step": i, "epoch": i / 10, "split": "train", "loss": float(i), "seconds": i % 100}
        for i in range(count)
    ]


def test_short_runs_are_exact():
    found = history.summarize([*records(3), {"step": 2, "split": "eval", "top1": 0.5}], BEST)
    assert found.series["train", "loss"].tolist() == [[0, 0, 0], [0.1, 1, 1], [0.2, 2, 2]]
    assert found.series["eval", "top1"].tolist() == [[0, 2, 0.5]]
    assert found.best == found.last == {"step": 2, "split": "eval", "top1": 0.5}
    assert found.seconds == 2


def test_long_runs_are_means_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "ROWS", 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records(45)))
    rows = history.read(path, BEST).series["train", "loss"]
    assert rows[:, 2].tolist() == [2, 7, 12, 17, 22, 27, 32, 37, 42]
    np.testing.assert_allclose(rows[:, 0] * 10, rows[:, 1])


def test_the_best_evaluation_is_found_in_any_block():
    lines = [{"step": i, "split": "eval", "top1": 1 - abs(i - 37) / 100} for i in range(100)]
    assert history.summarize(lines, BEST, block=50).best["step"] == 37


def test_the_number_of_metrics_is_bounded(monkeypatch):
    monkeypatch.setattr(history, "METRICS", 3)
    lines = [{"step": i, "split": "train", f"metric {i}": 1.0} for i in range(10)]
    assert len(history.summarize(lines, BEST).series) == 3


@pytest.mark.parametrize("odd", ["x", None, [1], {}, True, float("nan"), float("inf")])
def test_odd_values_are_left_out(odd):
    line = {"step": 1, "split": "train", "loss": odd, "epoch": odd, "seconds": odd}
    found = history.summarize([line, {"step": 2, "split": [odd]}], BEST)
    assert found.last == line
    assert found.seconds == 0
