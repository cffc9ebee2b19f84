"""Bootstrap intervals: repeatable, by group, and absent where the samples say nothing."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from densenet_jax.scores import intervals, thresholds
from densenet_jax.scores.labels import ScoresError

NAN = np.nan
NONE = {"low": None, "high": None}


def table(examples=300, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((examples, labels)) < 0.4).astype(float)
    return rng.normal(size=targets.shape) + targets, targets


def drawn(count, sample, seed=0):
    """Returns the numbers that a sample draws."""
    return np.random.default_rng((seed, sample)).integers(count, size=count)


def test_equal_to_scores_of_repeated_examples():
    scores, targets = table()
    found = intervals.of_ranking(scores, targets, samples=40)
    rows = [drawn(len(scores), i) for i in range(40)]
    areas = np.array([[roc_auc_score(targets[r, i], scores[r, i]) for i in range(3)] for r in rows])
    for i in range(3):
        low, high = np.quantile(areas[:, i], [0.025, 0.975])
        assert found["auroc"][i] == {
            "low": pytest.approx(low, abs=1e-12),
            "high": pytest.approx(high, abs=1e-12),
            "undefined": 0,
        }
    low, high = np.quantile(areas.mean(axis=1), [0.025, 0.975])  # of the same examples
    assert found["mean_auroc"]["low"] == pytest.approx(low, abs=1e-12)
    assert found["mean_auroc"]["high"] == pytest.approx(high, abs=1e-12)


def test_rates_equal_those_of_repeated_examples():
    p, targets = table()
    targets[:5, 1] = NAN
    found = intervals.of_rates(p, targets, [0.5, 0.2, None], samples=40)
    assert set(found) == set(thresholds.RATES)
    for i, threshold in enumerate((0.5, 0.2)):
        rows = [drawn(len(p), k) for k in range(40)]
        rows = [r[~np.isnan(targets[r, i])] for r in rows]
        scores = [f1_score(targets[r, i], p[r, i] >= threshold) for r in rows]
        low, high = np.quantile(scores, [0.025, 0.975])
        assert found["f1"][i]["low"] == pytest.approx(low, abs=1e-12)
        assert found["f1"][i]["high"] == pytest.approx(high, abs=1e-12)
    assert all(rows[2] == {**NONE, "undefined": 40} for rows in found.values())


def test_a_sample_depends_on_the_seed_alone():
    scores, targets = table()
    first = intervals.of_ranking(scores, targets, samples=50)
    assert intervals.of_ranking(scores, targets, samples=50) == first
    assert intervals.of_ranking(scores, targets, samples=50, seed=1) != first
    few = intervals.bootstrap(lambda w: w[:3], 100, samples=5)
    assert (intervals.bootstrap(lambda w: w[:3], 100, samples=9)[:5] == few).all()


def test_groups_are_drawn_whole():
    """300 patients with five equal images each are 300 examples, not 1,500."""
    scores, targets = table()
    one = intervals.of_ranking(scores, targets, samples=100)
    five = np.repeat(scores, 5, axis=0), np.repeat(targets, 5, axis=0)
    patients = [f"patient {i // 5}" for i in range(1500)]
    same = intervals.of_ranking(*five, patients, samples=100)
    assert same["auroc"] == [pytest.approx(row, abs=1e-12) for row in one["auroc"]]
    assert same["mean_average_precision"] == pytest.approx(one["mean_average_precision"])
    narrow = intervals.of_ranking(*five, samples=100)["auroc"][0]
    width = one["auroc"][0]["high"] - one["auroc"][0]["low"]
    assert narrow["high"] - narrow["low"] < 0.6 * width


def test_examples_of_an_unknown_group_are_groups_of_their_own():
    scores, targets = table()
    one = intervals.of_ranking(scores, targets, samples=20)
    unknown = [(None, NAN, "")[i % 3] for i in range(len(scores))]
    assert intervals.of_ranking(scores, targets, unknown, samples=20) == one
    numbers = list(range(len(scores)))
    assert intervals.of_ranking(scores, targets, numbers, samples=20) == one


def test_no_interval_where_the_samples_say_nothing():
    rng = np.random.default_rng(0)
    scores = rng.random((200, 3))
    targets = np.zeros((200, 3))
    targets[:2, 0] = 1  # two positives: a seventh of the samples has none
    targets[:40, 1] = 1  # one patient has all positives
    patients = [0] * 40 + list(range(1, 161))
    found = intervals.of_ranking(scores, targets, patients, samples=200)
    for key in ("auroc", "average_precision"):
        assert [{**row, "undefined": 0} for row in found[key]] == [{**NONE, "undefined": 0}] * 3
    assert found["auroc"][1]["undefined"] > 40
    assert found["auroc"][2]["undefined"] == 200
    perfect = intervals.of_ranking(np.arange(50.0), np.arange(50) > 20, samples=50)
    assert perfect["auroc"] == [{**NONE, "undefined": 0}]
    alone = intervals.of_ranking(*table(), ["one patient"] * 300, samples=5)
    assert alone["mean_auroc"] == {**NONE, "undefined": 5}
    with pytest.raises(ScoresError, match="2 groups for 300 examples"):
        intervals.of_ranking(*table(), [1, 2])


def test_intervals_contain_the_truth_in_nearly_95_percent_of_the_cases():
    """The AUROC of two normal distributions with means 0 and 1 is Phi(1 / sqrt(2)) = 0.7602."""
    hits = 0
    for seed in range(300):
        found = intervals.of_ranking(*table(200, 1, seed), samples=100, seed=seed)["auroc"][0]
        hits += found["low"] <= 0.76025 <= found["high"]
    assert 0.91 <= hits / 300 <= 0.98


def test_means_leave_out_what_is_unknown():
    rng = np.random.default_rng(0)
    values = rng.random((100, 2))
    values[::3, 1] = NAN
    found = intervals.of_means(values, samples=300)
    for i, row in enumerate(found):
        own = values[~np.isnan(values[:, i]), i]
        error = 1.96 * own.std() / np.sqrt(len(own))
        assert row["low"] == pytest.approx(own.mean() - error, abs=0.02)
        assert row["high"] == pytest.approx(own.mean() + error, abs=0.02)
    assert intervals.of_means(np.zeros(0), samples=3) == [{**NONE, "undefined": 3}]
    assert intervals.of_means(np.ones(9, bool), samples=3) == [{**NONE, "undefined": 0}]
