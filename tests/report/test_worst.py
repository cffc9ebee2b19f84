"""The choice of examples that get pictures."""

import numpy as np

from densenet_jax.report import worst
from densenet_jax.report.estimates import Estimates

from .conftest import some_numbers


def answers(values, labels, at=0.5):
    names = np.array([f"label {i}" for i in range(values.shape[1])])
    at = np.full(values.shape[1], at)
    return Estimates("multilabel", np.arange(len(values)), labels, values, names, thresholds=at)


def test_the_surest_mistakes_of_each_kind():
    values = np.array([[0.9], [0.6], [0.5], [0.4], [0.1], [0.8], [0.95]], np.float32)
    labels = np.array([[0], [0], [0], [1], [1], [np.nan], [1]], np.float32)
    rows, columns = worst.pictured(answers(values, labels))
    assert rows.tolist() == [
        0,
        1,
        2,
        4,
        3,
    ]  # false positives, also at the threshold; then negatives
    assert columns.tolist() == [0] * 5


def test_every_label_gets_pictures_before_one_gets_many():
    rng = np.random.default_rng(0)
    labels = np.zeros((50, 20), np.float32)
    values = rng.uniform(0.6, 0.7, labels.shape).astype(np.float32)
    values[:, 0] = 0.99  # surer than any other
    rows, columns = worst.pictured(answers(values, labels))
    counts = np.bincount(columns, minlength=20)
    assert len(rows) == worst.PICTURES
    assert counts.min() == 2
    assert counts.max() == 3
    (one,) = {int(worst.pictured(answers(values[:, :1], labels[:, :1]))[0].size)}
    assert one == worst.EACH


def test_no_mistakes():
    labels = np.array([[0], [1]], np.float32)
    rows, columns = worst.pictured(answers(labels, labels))
    assert (len(rows), len(columns)) == (0, 0)


def test_the_largest_errors_of_each_number():
    found = some_numbers()
    rows, columns = worst.pictured(found)
    errors = np.abs(found.values - found.labels)
    assert rows[0] == np.nanargmax(errors[:, 0])
    assert rows[columns == 1][0] == errors[:, 1].argmax()
    assert not np.isnan(errors[rows, columns]).any()
