"""Statistics of predictions that are few enough to count by hand."""

import numpy as np
import pytest
from scipy import sparse

from densenet_jax.report import statistics

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])


def test_confusion():
    matrix = statistics.confusion(LABELS, PREDICTED, 4)
    assert matrix.toarray().tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    pairs = statistics.worst_pairs(matrix, 5)
    assert [(p["label"], p["predicted"], p["count"]) for p in pairs] == [(0, 1, 1), (2, 0, 1)]
    assert pairs[0]["share"] == pytest.approx(1 / 3)


def test_per_class():
    matrix = statistics.confusion(LABELS, PREDICTED, 4)
    rows = statistics.per_class(matrix, LABELS, np.array([1, 1, 1, 1, 1, 0], bool))
    assert rows[0]["recall"] == pytest.approx(2 / 3)
    assert rows[0]["precision"] == pytest.approx(2 / 3)
    assert rows[1]["f1"] == pytest.approx(0.8)
    assert rows[2] == {
        "label": 2,
        "examples": 1,
        "recall": 0,
        "precision": None,
        "f1": 0,
        "top5": 0,
        "confused": 0,
        "confused_count": 1,
    }
    assert rows[3]["recall"] is rows[3]["f1"] is rows[3]["confused"] is None


def test_classes_that_are_often_confused_become_neighbours():
    matrix = np.eye(6, dtype=int) * 10
    for a, b in ((0, 3), (1, 4), (2, 5)):
        matrix[a, b] = matrix[b, a] = 5
    order = statistics.cluster_order(sparse.csr_array(matrix)).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert {frozenset(order[i : i + 2]) for i in (0, 2, 4)} == {
        frozenset(pair) for pair in ((0, 3), (1, 4), (2, 5))
    }
    assert statistics.cluster_order(sparse.eye_array(2, format="csr")).tolist() == [0, 1]
