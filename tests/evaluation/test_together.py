"""Scores of several networks together: ensembles on one split, folds on parts of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.data.sources.source import Arrays, DataError, Source
from densenet_jax.evaluation import ensemble, features, folds
from densenet_jax.evaluation.splits import Assessed
from densenet_jax.scores.labels import ScoresError
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.losses import make_loss

TASK, LOSS = find_task("classification"), make_loss("cross_entropy")
NAMES = ("a", "b", "c")


def assessed(seed, examples=40, groups=None):
    rng = np.random.default_rng(seed)
    label = np.arange(examples, dtype=np.int32) % 3
    logits = (np.eye(3)[label] + rng.normal(size=(examples, 3))).astype(np.float32)
    found = {"index": np.arange(examples), "label": label, "logits": logits}
    found["loss"] = np.asarray(LOSS(jnp.asarray(logits), jnp.eye(3)[label]))
    found |= {k: np.asarray(v) for k, v in TASK.scores(jnp.asarray(logits), label).items()}
    images = np.zeros((examples, 2, 2, 1), np.uint8)
    source = Source(Arrays(images, label), NAMES, groups=groups)
    record = {"data": "it", "split": "test", "crops": 1, "flip": False}
    return Assessed(record | TASK.summary(found, NAMES), found, source)


def test_an_ensemble_averages_probabilities():
    members = [assessed(0), assessed(1), assessed(2)]
    found = ensemble.average(TASK, LOSS, members)
    chances = [np.exp(m.scores["logits"]) for m in members]
    mean = np.mean([c / c.sum(1, keepdims=True) for c in chances], axis=0)
    label = members[0].scores["label"]
    assert found.record["top1"] == pytest.approx((mean.argmax(1) == label).mean())
    assert found.record["loss"] == pytest.approx(-np.log(mean[range(40), label]).mean(), rel=1e-5)
    assert found.record["top1"] > max(m.record["top1"] for m in members)


def test_networks_that_saw_other_examples_are_not_averaged():
    other = assessed(1)
    other.scores["index"] = other.scores["index"] + 1
    with pytest.raises(ScoresError, match="did not read the same examples"):
        ensemble.average(TASK, LOSS, [assessed(0), other])


def test_folds_have_a_mean_a_spread_and_scores_of_all_examples_together():
    parts = [assessed(seed, groups=[f"{seed}-{i // 4}" for i in range(40)]) for seed in (0, 1, 2)]
    record = folds.summarize(TASK, parts)
    values = [part.record["top1"] for part in parts]
    assert record["mean"]["top1"] == pytest.approx(np.mean(values))
    assert record["std"]["top1"] == pytest.approx(np.std(values, ddof=1))
    assert record["pooled"]["examples"] == 120
    assert record["pooled"]["top1"] == pytest.approx(np.mean(values))  # folds of the same size
    text = folds.describe(TASK, record, "folds.json")
    assert "top-1: mean" in text
    assert "calibration error" in text


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_simple_models_on_features_that_say_the_label(task):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    label = {
        "classification": (x[:, 0] > 0).astype(np.int32),
        "multilabel": (x[:, :2] > 0).astype(np.float32),
        "regression": 3 * x[:, :1] + 7,
    }[task]
    if task != "classification":
        label[::7] = np.nan

    class Setup:
        pass

    setup = Setup()
    setup.task, setup.model = find_task(task), Setup()
    setup.model.num_classes = 2
    data = {"features": x, "label": label}
    train, other = (
        {k: v[part] for k, v in data.items()} for part in (slice(200), slice(200, None))
    )
    found = features.quick_look(setup, train, other)
    best = setup.task.best
    good = {"classification": 0.9, "multilabel": 0.98, "regression": -0.05}[task]
    assert best.score(found["linear probe"]) > good
    assert best.score(found["linear probe"]) >= best.score(found["nearest neighbours"])


def test_features_in_a_table_and_in_arrays(tmp_path):
    own = {
        "index": np.arange(2),
        "features": np.float32([[1, 2, 3], [4, 5, 6]]),
        "label": np.float32([[0, np.nan], [1, 1]]),
        "id": np.array(["a.png", "b.png"]),
    }
    features.write(str(tmp_path / "x.npz"), {"eval": own}, ("one", "two"))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["eval_features"], own["features"])
        assert file["class_names"].tolist() == ["one", "two"]
    parquet = pytest.importorskip("pyarrow.parquet")
    features.write(str(tmp_path / "x.parquet"), {"eval": own}, ("one", "two"))
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert rows[1] == {
        **{"split": "eval", "index": 1, "id": "b.png", "label": [1.0, 1.0]},
        **{"feature_0": 4.0, "feature_1": 5.0, "feature_2": 6.0},
    }


def test_what_is_no_image_has_no_features():
    with pytest.raises(DataError, match=r"x\.png: there is no such file"):
        features.of_files([("a.png", None), ("x.png", "there is no such file")])
