"""Areas under curves equal those of scikit-learn, and are undefined where they mean nothing."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from densenet_jax.scores import ranking
from densenet_jax.scores.labels import ScoresError

NAN = np.nan


def table(seed, examples=400, labels=4, levels=20):
    """Returns scores with many ties, and targets, of which every tenth is unknown."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((examples, labels)) < np.linspace(0.05, 0.9, labels)).astype(float)
    scores = np.round((rng.normal(size=targets.shape) + targets) * levels / 4) / levels
    targets[rng.random(targets.shape) < 0.1] = NAN
    return scores.astype(np.float32), targets


@pytest.mark.parametrize("levels", [1, 20, 10**6])
def test_equal_to_scikit_learn_with_ties_and_weights(levels):
    scores, targets = table(levels, levels=levels)
    found = ranking.by_label(scores, targets)
    weights = np.random.default_rng(1).integers(0, 4, len(scores))
    for i in range(scores.shape[1]):
        known = ~np.isnan(targets[:, i])
        pair = targets[known, i], scores[known, i]
        assert found["auroc"][i] == pytest.approx(roc_auc_score(*pair), abs=1e-12)
        precision = average_precision_score(*pair)
        assert found["average_precision"][i] == pytest.approx(precision, abs=1e-12)
        area, precision = ranking.rank(scores[:, i], targets[:, i]).auroc_and_precision(weights)
        own = {"sample_weight": weights[known]}
        assert area == pytest.approx(roc_auc_score(*pair, **own), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(*pair, **own), abs=1e-12)


def test_weights_are_repeated_examples():
    scores, targets = table(3)
    weights = np.random.default_rng(1).integers(0, 300, len(scores))  # more than a byte holds
    repeated = ranking.by_label(np.repeat(scores, weights, 0), np.repeat(targets, weights, 0))
    for i in range(scores.shape[1]):
        got = ranking.rank(scores[:, i], targets[:, i]).auroc_and_precision(weights)
        wanted = repeated["auroc"][i], repeated["average_precision"][i]
        assert got == pytest.approx(wanted, abs=1e-12)


def test_known_values():
    assert ranking.by_label([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])["auroc"] == [0.75]
    assert ranking.by_label([0.5] * 5, [0, 1, 1, 0, 1])["auroc"] == [0.5]  # a tie is no win
    found = ranking.by_label([np.inf, 2, -np.inf], [1, NAN, 0])
    assert (found["auroc"], found["average_precision"]) == ([1], [1])


def test_labels_without_both_kinds_are_undefined_and_named():
    targets = np.array([[1, 0, 1, NAN], [1, 0, 0, NAN], [1, 0, NAN, NAN]])
    found = ranking.by_label(np.random.default_rng(0).random((3, 4)), targets)
    for values in found.values():
        assert np.isnan(values).tolist() == [True, True, False, True]
        mean, left_out = ranking.mean_of_defined(values, ["a", "b", "c", "d"])
        assert (mean, left_out) == (values[2], ["a", "b", "d"])
    assert ranking.mean_of_defined(np.array([NAN]), ["a"]) == (None, ["a"])
    assert np.isnan(ranking.by_label(np.zeros((0, 2)), np.zeros((0, 2)))["auroc"]).all()


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([NAN, 0.2, 0.3], [1, 0, 1], "scores of 1 of 3 examples are NaN"),
        ([0.1, 0.2, 0.3], [1, 0, 2], "1 of 3 targets are not 0, 1 or NaN"),
        ([0.1, 0.2, 0.3], [1, 0, -1], "1 of 3 targets are not 0, 1 or NaN"),
        ([0.1, 0.2, 0.3], [1, 0], r"\[3\] and the targets \[2\]"),
        ([[0.1, 0.2, 0.3]], [1, 0, 1], r"\[1, 3\] and the targets \[3\]"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, targets, message):
    with pytest.raises(ScoresError, match=message):
        ranking.by_label(scores, targets)


def test_a_score_of_an_unknown_example_may_be_anything():
    assert ranking.by_label([NAN, 0.2, 0.3], [NAN, 0, 1])["auroc"] == [1]


@pytest.mark.parametrize("separation", [0.0, 1.0, 6.0])
def test_curves_are_short_and_keep_their_shape(separation):
    rng = np.random.default_rng(0)
    targets = (rng.random(20_000) < 0.03).astype(float)
    scores = rng.normal(size=len(targets)) + separation * targets
    found = ranking.curves(scores, targets)
    exact = ranking.by_label(scores, targets)
    roc, precision_recall = np.array(found["roc"]), np.array(found["precision_recall"])
    assert max(len(roc), len(precision_recall)) <= ranking.CURVE_POINTS
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(exact["auroc"][0], abs=1e-3)
    area = -np.trapezoid(precision_recall[:, 1], precision_recall[:, 0])
    assert area == pytest.approx(exact["average_precision"][0], abs=2e-3)


def test_curves_of_infinite_scores_and_of_one_kind():
    found = ranking.curves([np.inf, 0, -np.inf], [1, 1, 0])
    assert found["roc"] == [[0, 0], [0, 1], [1, 1]]
    assert ranking.curves([0.1, 0.2], [1, NAN]) == {"roc": None, "precision_recall": None}
