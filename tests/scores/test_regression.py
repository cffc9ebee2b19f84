"""Errors equal those of scikit-learn; unknown targets do not count."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from densenet_jax.scores import intervals, regression
from densenet_jax.scores.labels import ScoresError

NAN = np.nan


@pytest.mark.parametrize("weighted", [False, True])
def test_equal_to_scikit_learn(weighted):
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 2))
    predictions = targets + rng.normal(size=targets.shape)
    targets[::7, 1] = NAN
    predictions[7, 1] = NAN  # its target is unknown
    weights = rng.integers(4, size=50) if weighted else None
    found = regression.errors(predictions, targets, weights)
    for i in range(2):
        known = ~np.isnan(targets[:, i])
        pair = targets[known, i], predictions[known, i]
        own = {"sample_weight": None if weights is None else weights[known]}
        assert found["mae"][i] == pytest.approx(mean_absolute_error(*pair, **own))
        assert found["rmse"][i] ** 2 == pytest.approx(mean_squared_error(*pair, **own))
        assert found["r2"][i] == pytest.approx(r2_score(*pair, **own))


def test_undefined_errors():
    found = regression.errors(np.zeros((3, 2)), np.array([[0.1, NAN]] * 3))
    assert found["mae"].tolist() == [pytest.approx(0.1), pytest.approx(NAN, nan_ok=True)]
    assert np.isnan(found["r2"]).all()  # nothing varies, or nothing is known
    assert np.isnan(regression.errors(np.zeros(0), np.zeros(0))["rmse"]).all()


def test_what_is_not_finite_is_refused():
    for pair in (([NAN, 1], [0, 1]), ([0, 1], [np.inf, 1])):
        with pytest.raises(ScoresError, match="1 predictions or targets are not finite"):
            regression.errors(*pair)


def test_bootstrap():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=100)
    predictions = targets + rng.normal(size=100)

    def score(weights):
        return np.concatenate(list(regression.errors(predictions, targets, weights).values()))

    drawn = intervals.bootstrap(score, 100, samples=100)
    found = regression.errors(predictions, targets)
    for values, value in zip(drawn.T, (*found["mae"], *found["rmse"], *found["r2"]), strict=True):
        row = intervals.interval(values)
        assert row["low"] < value < row["high"]
