"""The order of examples: functions of (seed, position) in which each class comes equally often."""

import numpy as np
import pytest

from densenet_jax.data.reading import order
from densenet_jax.data.sources import subsets
from densenet_jax.data.sources.source import Arrays, DataError, Source

POOLS = (np.arange(50), np.array([60, 61, 62]), np.array([70]))


def test_each_class_comes_equally_often_and_its_examples_in_epochs():
    found = order.balanced_at(np.arange(300), POOLS, seed=3)
    which = np.searchsorted([50, 63], found, side="right")
    assert (np.bincount(which) == 100).all()
    assert (np.sort(which.reshape(100, 3), axis=1) == [0, 1, 2]).all()
    assert (np.bincount(found[which == 0], minlength=50) == 2).all()
    rare = found[which == 1][:99].reshape(33, 3)
    assert (np.sort(rare, axis=1) == [60, 61, 62]).all()
    assert len({tuple(row) for row in rare.tolist()}) > 1


def test_a_position_has_the_same_example_however_it_is_reached():
    whole = order.balanced_at(np.arange(1000), POOLS, seed=3)
    parts = [order.balanced_at(np.arange(i, i + 7), POOLS, seed=3) for i in range(0, 994, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:994])
    assert (order.balanced_at(np.arange(1000), POOLS, seed=4) != whole).mean() > 0.5


def split(labels, task, names=("a", "b")):
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return Source(Arrays(images, np.asarray(labels)), names, "it", task=task)


def test_pools_of_classes_and_of_labels():
    pools = subsets.pools(split(np.int32([0, 1, 0]), "classification"))
    assert [pool.tolist() for pool in pools] == [[0, 2], [1]]
    labels = np.float32([[1, 0], [1, 1], [0, np.nan], [0, 0]])
    pools = subsets.pools(split(labels, "multilabel"))
    assert [pool.tolist() for pool in pools] == [[0, 1], [1], [2, 3]]


def test_a_class_without_examples_and_numbers_cannot_be_balanced():
    with pytest.raises(DataError, match="it has no examples of b; choose the others"):
        subsets.pools(split(np.int32([0, 0]), "classification"))
    with pytest.raises(DataError, match="the labels are numbers"):
        subsets.pools(split(np.float32([[1, 2]]), "regression"))
