"""A tiny network and a made-up directory of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax import create_model
from densenet_jax.report import model_summary, predictions
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.feature_reuse import reuse
from densenet_jax.report.predictions import Predictions

NAMES = ("<script>alert(1)</script>", "cat & dog", "</script>")


def tiny_model(**fields):
    """Returns a DenseNet for three classes with blocks of two layers and one layer."""
    fields = {"block_sizes": (2, 1), "num_classes": 3, "in_channels": 1, **fields}
    return create_model("densenet_cifar", growth_rate=4, **fields)


def random_variables(model, seed=0, size=16):
    """Returns variables without initial values of 0 or 1, as after training; compiles nothing."""
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="session")
def tiny():
    model = tiny_model()
    return model, random_variables(model)


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(1).normal(size=(3, 16, 16, 1)).astype(np.float32)


@pytest.fixture
def workdir(tmp_path, tiny):
    """The directory of a run with all files, and an incomplete last line of metrics."""
    path = tmp_path / "<b>run"
    path.mkdir()
    config = {"seed": 7, "batch_size": 8, "model": {"name": "densenet_cifar"}}
    config["data"] = {"name": "<i>pets</i>", "mean": [0.5, 0.25]}
    (path / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.5, "top1": 0.1, "learning_rate": 0.1},
        {"step": 2, "epoch": 1.0, "split": "train", "loss": None, "images_per_second": 99.0},
        {"step": 2, "epoch": 1.0, "split": "eval", "loss": 1.5, "top1": 0.5, "grad_norm": 3.0},
        {"step": 4, "epoch": 2.0, "split": "eval", "loss": 1.0, "top1": 0.75, "seconds": 61.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 5, "ep')
    (path / "environment.json").write_text(json.dumps([{"python": "3", "versions": {"jax": "1"}}]))
    predictions.save(some_predictions(), path)
    model, variables = tiny
    matrices = [np.where(np.isnan(m), None, m).tolist() for m in reuse(variables)]
    summary = model_summary.summarize(model, (16, 16, 1), 8)
    insight = {"step": 4, "model": summary, "reuse": matrices, "ablation": matrices}
    (path / "insight.json").write_text(json.dumps({**insight, "ablation_examples": 4}))
    return path


def some_predictions() -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        index=np.array([0, 1, 2, 4]),
        labels=np.array([0, 1, 2, 2]),
        classes=np.array([[0, 1, 2], [2, 1, 0], [2, 0, 1], [1, 2, 0]]),
        probabilities=np.array(
            [[0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [0.8, 0.15, 0.05], [0.6, 0.3, 0.1]], np.float32
        ),
        own=np.array([0.5, 0.06, 0.8, 0.3], np.float32),
        class_names=np.array(NAMES),
        step=4,
        data="pets/test",
        shown=np.array([1, 3, 0]),
        pictures=rng.integers(0, 256, (3, 8, 8, 3), np.uint8),
        maps=rng.normal(size=(3, 2, 2)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def labels() -> Estimates:
    """60 examples of three labels, some unknown, the last one never present."""
    rng = np.random.default_rng(0)
    true = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0, np.zeros(60)], 1).astype(np.float32)
    values = (0.5 * true + rng.uniform(0, 0.6, true.shape)).clip(0, 1).astype(np.float32)
    true[rng.random(true.shape) < 0.1] = np.nan
    columns = {
        "group": np.array([f"patient {i // 2}" for i in range(60)]),
        "column_sex": np.array([*(["F", "F", "M", "M"] * 15)[:56], *[""] * 4]),
        "column_decade": np.array(["9", "10", "20"] * 20),
        "column_age": np.array([str(i) for i in range(60)]),
        "column_site": np.array(["here"] * 60),
    }
    return Estimates(
        "multilabel",
        np.arange(60),
        true,
        values,
        np.array(["even <b>", "third", "never"]),
        step=4,
        data="chest/test",
        thresholds=np.array([0.5, 0.4, 0.5]),
        shown=np.array([0, 1]),
        shown_for=np.array([2, 0]),
        pictures=rng.integers(0, 256, (2, 8, 8, 1), np.uint8),
        maps=rng.normal(size=(2, 2, 2)).astype(np.float32),
        columns=columns,
    )


def some_numbers(count: int = 60) -> Estimates:
    """Two numbers, of which the first is sometimes unknown."""
    rng = np.random.default_rng(1)
    true = rng.normal([50, 0.01], [10, 0.001], (count, 2)).astype(np.float32)
    values = (true + rng.normal(0, [3, 0.0002], true.shape)).astype(np.float32)
    true[::10, 0] = np.nan
    return Estimates(
        "regression", np.arange(count), true, values, np.array(["age", "weight"]), 4, "bones/test"
    )
