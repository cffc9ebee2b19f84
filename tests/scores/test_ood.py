"""Scores of strange examples, compared with formulas and told from usual ones."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis as distance
from sklearn.covariance import ledoit_wolf

from densenet_jax.scores import ood
from densenet_jax.scores.labels import ScoresError


def features(count=300, dimensions=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count) * 2  # class 1 has no examples
    mixing = rng.normal(size=(dimensions, dimensions))
    return rng.normal(size=(count, dimensions)) @ mixing + 3 * labels[:, None], labels


def test_energy():
    logits = np.array([[1.0, 2, 3], [1000, 0, 0]])
    assert ood.energy(logits) == pytest.approx([-3.4076059644443806, -1000])
    soft = np.log1p(np.exp([1, 2, 3])).sum()
    assert ood.energy(logits, multilabel=True) == pytest.approx([-soft, -1000 - 2 * np.log(2)])


def test_mahalanobis_equals_its_definition():
    inside, labels = features()
    found = ood.mahalanobis(inside, labels)
    means = {i: inside[labels == i].mean(axis=0) for i in (0, 2, 4)}
    centered = inside - np.array([means[i] for i in labels])
    inverse = np.linalg.inv(ledoit_wolf(centered, assume_centered=True)[0])
    wanted = [min(distance(x, mean, inverse) for mean in means.values()) for x in inside[:20]]
    assert found(inside[:20]) == pytest.approx(wanted, rel=1e-5)


def test_strange_examples_are_told_from_usual_ones():
    inside, labels = features()
    found = ood.mahalanobis(inside[:200], labels[:200])
    outside = np.random.default_rng(1).normal(size=(100, 6)) * 20
    assert ood.separation(found(inside[200:]), found(outside)) > 0.95
    assert ood.separation(found(inside[200:250]), found(inside[250:])) == pytest.approx(
        0.5, abs=0.15
    )


def test_more_features_than_examples_and_features_that_never_vary():
    inside, labels = features(20, 6)
    wide = np.concatenate([inside] * 5 + [np.zeros((20, 10))], axis=1)
    distances = ood.mahalanobis(wide, labels)(wide)
    assert np.isfinite(distances).all()
    stranger = wide[:1] + np.r_[np.zeros(30), np.full(10, 5.0)]
    assert ood.mahalanobis(wide, labels)(stranger) > distances.max()


def test_separation_of_ties_nothing_and_nan():
    assert ood.separation(np.ones(3), np.ones(2)) == 0.5
    assert ood.separation(np.zeros(3), np.ones(2)) == 1
    assert np.isnan(ood.separation(np.zeros(3), np.zeros(0)))
    with pytest.raises(ScoresError, match="scores of 1 of 2 examples are NaN"):
        ood.separation([np.nan], [1])


def test_features_that_say_nothing_are_refused():
    with pytest.raises(ScoresError, match="have the same features"):
        ood.mahalanobis(np.ones((4, 2)), np.zeros(4, int))
    with pytest.raises(ScoresError, match="features of 1 of 2 examples are not finite"):
        ood.mahalanobis(np.array([[np.nan, 1], [0, 1]]), np.zeros(2, int))
