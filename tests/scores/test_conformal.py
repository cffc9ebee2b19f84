"""Sets of classes cover each class as often as promised, and say where nothing can be promised."""

import numpy as np
import pytest
from scipy.special import softmax

from densenet_jax.scores import conformal
from densenet_jax.scores.labels import ScoresError

NAMES = ("common", "rare", "hard")


def examples(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=count, p=[0.8, 0.1, 0.1])
    logits = rng.normal(size=(count, 3)) + 2 * np.eye(3)[labels]
    logits[:, 0] += 2  # the network prefers the common class
    return softmax(logits, axis=1), labels


def test_every_class_is_covered():
    """Means over 40 calibrations; without a quantile for each class the rare ones would suffer."""
    shares = []
    for seed in range(40):
        found = conformal.fit(*examples(800, seed), alpha=0.1)
        table = conformal.coverage(found, *examples(2000, 1000 + seed), NAMES)
        assert not found.too_few.any()
        shares.append([row["coverage"] for row in table["classes"]])
    means = np.mean(shares, axis=0)
    assert (means >= 0.895).all()  # the standard error of these means is at most 0.006
    assert (means <= 0.92).all()  # 1 - alpha + 1 / (n + 1) at most
    pooled = np.quantile(1 - examples(800, 0)[0][np.arange(800), examples(800, 0)[1]], 0.9)
    p, labels = examples(2000, 1000)
    assert (1 - p[labels == 1, 1] <= pooled).mean() < 0.8


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.3, 3), (0.01, 99)])
def test_a_class_with_too_few_examples_is_in_every_set(alpha, needed):
    p = np.tile([0.5, 0.5], (2 * needed - 1, 1))
    labels = np.array([0] * needed + [1] * (needed - 1))
    found = conformal.fit(p, labels, alpha)
    assert found.too_few.tolist() == [False, True]
    p = np.array([[1.0, 0.0], [0.4, 0.6]])
    assert found.sets(p).tolist() == [[True, True], [False, True]]
    rows = conformal.coverage(found, p, np.array([0, 0]), ("a", "b"))
    assert rows["mean_size"] == 1.5
    assert rows["classes"] == [
        {"class": "a", "calibrated_on": needed, "in_every_set": False, "examples": 2,
         "coverage": 0.5},
        {"class": "b", "calibrated_on": needed - 1, "in_every_set": True, "examples": 0,
         "coverage": None},
    ]  # fmt: skip


def test_the_limit_is_the_right_one_of_the_sorted_scores():
    p = np.stack([np.arange(1, 20) / 20, 1 - np.arange(1, 20) / 20], axis=1)
    found = conformal.fit(p, np.zeros(19, int), 0.1)  # k = ceil(20 * 0.9) = 18
    assert found.limits[0] == np.sort(1 - p[:, 0])[17]
    assert found.sets(p)[:, 0].sum() == 18


def test_empty_sets_are_counted():
    found = conformal.fit(np.full((40, 2), 0.9), np.arange(40) % 2, 0.1)
    table = conformal.coverage(found, np.array([[0.5, 0.5], [0.95, 0.05]]), np.zeros(2, int), "ab")
    assert (table["empty"], table["mean_size"]) == (0.5, 0.5)


def test_what_cannot_be_used_is_refused():
    p = np.full((4, 2), 0.5)
    for alpha in (0, 1, -0.1, np.nan):
        with pytest.raises(ScoresError, match="between 0 and 1, such as"):
            conformal.fit(p, np.zeros(4, int), alpha)
    with pytest.raises(ScoresError, match="1 labels are not between 0 and 1"):
        conformal.fit(p, np.array([0, 1, 2, 0]), 0.1)
    with pytest.raises(ScoresError, match="probabilities of 1 of 1 examples are NaN"):
        conformal.fit(p, np.zeros(4, int), 0.1).sets([[np.nan, 1]])
    with pytest.raises(ScoresError, match="3 probabilities for 2 limits"):
        conformal.fit(p, np.zeros(4, int), 0.1).sets([[0.2, 0.3, 0.5]])
