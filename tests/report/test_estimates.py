"""Answers for several labels and for numbers: stored, read again, or refused."""

import dataclasses

import numpy as np
import pytest

from densenet_jax.report import estimates, predictions
from densenet_jax.report.estimates import Estimates

from .conftest import some_numbers, some_predictions


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_round_trip(tmp_path, labels, task):
    found = labels if task == "multilabel" else some_numbers()
    estimates.save(found, tmp_path)
    again = estimates.load(tmp_path, task)
    for name, value in vars(found).items():
        if name != "columns":
            np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
    assert {k: v.tolist() for k, v in again.columns.items()} == {
        k: v.tolist() for k, v in found.columns.items()
    }
    with np.load(tmp_path / "predictions.npz") as file:
        assert {"index", "labels", "class_names", estimates.NOUNS[task]} <= set(file)
    other = {"multilabel": "regression", "regression": "multilabel"}[task]
    assert estimates.load(tmp_path, other) is None
    assert estimates.load(tmp_path, "classification") is None
    assert predictions.load(tmp_path) is None


def test_a_classifier_keeps_its_keys_and_gains_columns(tmp_path):
    columns = {"group": np.array(list("aabb")), "column_sex": np.array(list("FMFM"))}
    found = dataclasses.replace(some_predictions(), columns=columns, calibrated="pets/validation")
    path = predictions.save(found, tmp_path)
    with np.load(path) as file:
        keys = {"index", "labels", "classes", "probabilities", "own", "class_names", "step", "data"}
        assert keys | set(columns) <= set(file)
    again = predictions.load(tmp_path)
    assert again.columns["column_sex"].tolist() == list("FMFM")
    assert again.calibrated == "pets/validation"
    broken = dataclasses.replace(found, columns={"column_sex": np.array(["F"])})
    predictions.save(broken, tmp_path)
    assert predictions.load(tmp_path).columns == {}  # it does not fit the examples


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.zeros((3, 3), np.float32)},
        {"labels": np.full((60, 3), 2, np.float32)},
        {"labels": np.full((60, 3), np.inf, np.float32)},
        {"labels": np.zeros((60, 3), np.int64)},
        {"thresholds": np.array([0.5])},
        {"thresholds": np.array([0.5, np.nan, 0.5])},
        {"class_names": np.array([1, 2, 3])},
        {"shown": np.array([60]), "shown_for": np.array([0])},
        {"shown": np.array([0]), "shown_for": np.array([3])},
        {"shown": np.array([0]), "shown_for": np.array([0]), "pictures": np.zeros((1, 4, 4, 2))},
        {"index": np.arange(3)},
    ],
)
def test_arrays_that_do_not_fit_are_not_used(tmp_path, labels, change):
    estimates.save(dataclasses.replace(labels, **change), tmp_path)
    assert estimates.load(tmp_path, "multilabel") is None


def test_a_damaged_file_is_not_used(tmp_path, labels):
    path = estimates.save(labels, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    assert estimates.load(tmp_path, "multilabel") is None


def test_answers_that_are_not_finite_are_counted():
    values = np.array([[0, np.nan], [1, 2], [np.inf, np.nan]], np.float32)
    found = Estimates("regression", np.arange(3), values, values, np.array(["a", "b"]))
    assert found.not_finite == 2
