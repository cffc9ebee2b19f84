"""Sweeps: accepted and refused grids, and the files on disk."""

import importlib
import json

import jax
import pytest

from densenet_jax import cli
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import sweep
from densenet_jax.training.nonfinite import NonFiniteError
from densenet_jax.training.rundir.metrics_log import MetricsLog


def digits():
    return importlib.import_module("densenet_jax.configs.digits").get_config().lock()


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("seed=[0,1]", {"seed": [0, 1]}),
        ("optimizer.learning_rate=[0.05, 1e-1]", {"optimizer.learning_rate": [0.05, 0.1]}),
        ("a.b=[1] c=[2, 3]", {"a.b": [1], "c": [2, 3]}),
        ("a=[1];c=(2,)", {"a": [1], "c": [2]}),
        ("a=['x=[1] b=2', \"y\"], b=[(1, 2)]", {"a": ["x=[1] b=2", "y"], "b": [(1, 2)]}),
    ],
)
def test_grids(text, grid):
    if "x=[1] b" in text:  # a text that looks like a grid is refused, never misread
        with pytest.raises(ConfigError):
            sweep.parse(text)
        return
    assert sweep.parse(text) == grid


@pytest.mark.parametrize(
    "text",
    [
        *("", "seed", "seed=1", "seed=[]", "=[1]", "seed=[0] seed=[1]", "seed=[x]", "7 seed=[1]"),
        *("[1]", "seed=[__import__('os').system('true')]", "seed=[0", "seed=" + "[" * 9999),
    ],
)
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(ConfigError, match="--sweep"):
        sweep.parse(text)


def test_plan_is_a_grid_in_directories_that_tell_the_values():
    grid = {"optimizer.learning_rate": [0.1, 0.2], "model.name": ["densenet_cifar"], "seed": [3, 4]}
    runs = sweep.plan(digits(), grid, "runs/s")
    assert [str(r.workdir) for r in runs] == [
        f"runs/s/learning_rate={rate},name=densenet_cifar,seed={seed}"
        for rate in (0.1, 0.2)
        for seed in (3, 4)
    ]
    assert [(r.config.optimizer.learning_rate, r.config.seed) for r in runs][1] == (0.1, 4)
    clash = sweep.plan(digits(), {"model.name": ["densenet_cifar"], "data.name": ["digits"]}, "r")
    assert clash[0].workdir.name == "model.name=densenet_cifar,data.name=digits"


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"optimizer.rate": [1]}, r"config.optimizer.rate=1: "),
        ({"seed": ["many"]}, r"config.seed='many': "),
        ({"optimizer.learning_rate": [0.1, -1.0]}, "learning_rate is -1.0; it must be at least 0"),
        ({"model.depth": [10, 11]}, "depth"),
        ({"seed": [1, 1]}, "the same values twice"),
        ({"seed": list(range(50)), "batch_size": list(range(8, 400, 8))}, "2450 runs"),
    ],
)
def test_a_bad_point_is_refused_before_anything_runs(grid, words):
    with pytest.raises(ConfigError, match=words):
        sweep.plan(digits(), grid, "runs/s")


def test_rows_are_of_the_best_evaluation_and_a_run_that_diverges_is_one(
    tmp_path, monkeypatch, capsys
):
    """A stand-in replaces the training loop; tests/training/test_loop.py tests the real one."""
    started = []

    def train(config, workdir, listeners):
        started.append(config.seed)
        if config.seed == 1:
            raise NonFiniteError("3 steps in a row")
        path = tmp_path / workdir.removeprefix(f"{tmp_path}/")
        path.mkdir(parents=True, exist_ok=True)
        with MetricsLog(path / "metrics.jsonl") as log:
            for step, top1 in ((1, 0.2), (2, 0.2 + config.seed / 10), (3, 0.1)):
                scores = {"top1": top1, "top5": 0.9, "loss": 1.0, "seconds": 1.0}
                log.write({"step": step, "split": "eval", **scores})
        return {"seconds": 1.0}

    monkeypatch.setattr(sweep, "train_and_evaluate", train)
    words = ["main.py", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    assert cli.main([*words, "--sweep=seed=[1,2,3]"]) == 0
    assert started == [1, 2, 3]
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["values"] for row in rows] == [{"seed": s} for s in (1, 2, 3)]
    assert [row["top1"] for row in rows] == [None, 0.4, 0.5]
    assert rows[2]["step"] == 2
    assert "3 steps in a row" in rows[0]["error"]
    out = capsys.readouterr().out
    assert "50.00%" in out
    assert "diverged" in out
    assert cli.main([*words, "--sweep=seed=1"]) == 2
    (tmp_path / "sweep.json").unlink()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    sweep.sweep(digits(), str(tmp_path), "seed=[1,2]")
    assert not (tmp_path / "sweep.json").exists()  # the first process of a job alone writes
    assert not capsys.readouterr().out
