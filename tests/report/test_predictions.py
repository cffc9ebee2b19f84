"""Predictions: collecting them from batches, and storing them."""

import jax
import numpy as np

from densenet_jax.report import predictions
from densenet_jax.tasks.classification import Classification

from .conftest import NAMES, some_predictions


def test_collect_leaves_out_masked_examples(tiny, images):
    model, variables = tiny
    pixels = (images * 20 + 100).clip(0, 255).astype(np.uint8)
    batches = [
        {"image": pixels, "label": np.array([0, 1, 2]), "mask": np.array([True, False, True])},
        {"image": pixels, "label": np.array([1, 1, 0]), "mask": np.array([True, False, False])},
    ]
    found = predictions.collect(
        *(model, variables, lambda x: x.astype(np.float32) / 255, batches, NAMES),
        task=Classification(),
        step=3,
    )
    assert found.index.tolist() == [0, 2, 3]
    assert found.labels.tolist() == [0, 2, 1]
    logits = np.asarray(jax.jit(model.apply)(variables, pixels.astype(np.float32) / 255))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities[0], np.sort(chances[0])[::-1], rtol=1e-4)
    np.testing.assert_allclose(found.own, chances[[0, 2, 0], [0, 2, 1]], rtol=1e-4)
    assert found.classes.tolist() == np.argsort(-chances[[0, 2, 0]], axis=1).tolist()
    assert found.probabilities.shape == (3, 3)  # the model has only three classes


def test_round_trip_and_damage(tmp_path):
    found = some_predictions()
    path = predictions.save(found, tmp_path)
    again = predictions.load(tmp_path)
    for name, value in vars(found).items():
        assert np.array_equal(getattr(again, name), value), name
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-30])
    assert predictions.load(tmp_path) is None
    assert predictions.load(tmp_path / "nowhere") is None


def test_surest_mistakes_and_least_sure_hits():
    found = some_predictions()
    assert found.surest_mistakes(5).tolist() == [1, 3]
    assert found.least_sure_hits(5).tolist() == [0, 2]
    assert found.least_sure_hits(1).tolist() == [0]
