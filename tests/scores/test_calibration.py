"""Calibration errors that can be computed by hand, and scalings that undo a known distortion."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from densenet_jax.scores import scaling
from densenet_jax.scores.calibration import calibration
from densenet_jax.scores.labels import ScoresError

NAN = np.nan


def test_bins_and_error():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    bins, error = calibration(confidence, np.array([1, 1, 1, 0], bool), bins=10)
    assert [(b["count"], b["accuracy"]) for b in bins] == [(2, 0.5), (2, 1.0)]
    assert error == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert calibration(np.array([0.0, 1.0]), np.array([0, 1], bool))[1] == 0
    assert calibration(np.zeros(0), np.zeros(0, bool)) == ([], 0.0)


def overconfident(examples=4000, factor=4.0):
    """Returns logits that are `factor` times those that the labels are drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(examples, 5)) * 1.5
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits, axis=1)])
    return logits * factor, labels


def test_a_temperature_undoes_overconfidence():
    logits, labels = overconfident()
    found = scaling.of_classes(logits[:2000], labels[:2000])
    assert found.scale == pytest.approx(1 / 4, rel=0.1)
    before = scaling.reliability_of_classes(logits[2000:], labels[2000:])
    after = scaling.reliability_of_classes(found(logits[2000:]), labels[2000:])
    assert before["ece"] > 0.2
    assert after["ece"] < 0.05
    assert after["loss"] < before["loss"]
    for scale in (0.98, 1.02):  # no better one is near
        near = logits[:2000] * found.scale * scale
        assert scaling.class_loss(near, labels[:2000]) > scaling.class_loss(
            found(logits[:2000]), labels[:2000]
        )


def binary(examples=3000):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(examples, 3)) * 2
    targets = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(float)
    targets[rng.random(true.shape) < 0.1] = NAN
    targets[:, 2] = 1
    return true * [3, 0.5, 1] + [2, 0, 0], targets


def test_platt_scaling_equals_logistic_regression():
    logits, targets = binary()
    found = scaling.of_labels(logits, targets, bias=True)
    for i in range(2):
        known = ~np.isnan(targets[:, i])
        exact = LogisticRegression(C=np.inf, tol=1e-9).fit(
            logits[known, i : i + 1], targets[known, i]
        )
        assert found.scale[i] == pytest.approx(exact.coef_.item(), rel=1e-4)
        assert found.bias[i] == pytest.approx(exact.intercept_.item(), abs=1e-4)
    assert found.fitted.tolist() == [True, True, False]
    assert (found.scale[2], found.bias[2]) == (1, 0)  # all its targets are 1


def test_temperatures_of_labels_improve_reliability():
    logits, targets = binary()
    before = scaling.reliability_of_labels(logits, targets)
    found = scaling.of_labels(logits, targets)
    after = scaling.reliability_of_labels(found(logits), targets)
    assert (found.bias == 0).all()
    assert found.scale[1] == pytest.approx(2, rel=0.1)
    assert (after["loss"][:2] < before["loss"][:2]).all()
    assert after["ece"][1] < before["ece"][1] - 0.05
    unknown = scaling.reliability_of_labels(np.zeros((2, 1)), np.full((2, 1), NAN))
    assert np.isnan(unknown["ece"]).all()
    assert np.isnan(unknown["loss"]).all()


def test_logits_without_errors_get_the_largest_scale():
    logits = np.array([[-1.0], [1.0], [-2.0], [0.5]])
    targets = (logits > 0).astype(float)
    for bias in (False, True):
        scale = scaling.of_labels(logits, targets, bias).scale
        assert 10 < scale[0] <= scaling.MAX_SCALE


def test_what_cannot_be_scaled_is_refused():
    with pytest.raises(ScoresError, match="1 logits are not finite"):
        scaling.of_classes(np.array([[np.inf, 0]]), np.array([0]))
    with pytest.raises(ScoresError, match="1 logits are not finite"):
        scaling.of_labels(np.array([np.inf, 0]), np.array([0, 1]))
    with pytest.raises(ScoresError, match="there are none"):
        scaling.of_classes(np.zeros((0, 3)), np.zeros(0, int))
