"""Coverage: as wanted for exchangeable examples, of halves and of a split that was kept."""

import numpy as np
import pytest

from densenet_jax.dossier import coverage

COUNT = 4000


def classes(seed=0, count=COUNT):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    logits = rng.normal(size=(count, 3)) + 1.5 * np.eye(3)[labels]
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("kept", [None, classes(1)])
def test_of_classes(kept):
    found = coverage.measure("classification", classes(), ["a", "b", "c"], kept=kept)
    assert found["halves"] == (kept is None)
    assert [row["coverage"] for row in found["rows"]] == pytest.approx([0.9] * 3, abs=0.03)
    assert sum(row["examples"] for row in found["rows"]) == COUNT
    assert 1 < found["mean_size"] < 3
    for row in found["rows"]:
        assert row["interval"][0] < row["coverage"] < row["interval"][1]


def test_halves_set_each_others_limits():
    """One half of the groups is predicted worse: its coverage is too low, the other's too high."""
    rng = np.random.default_rng(0)
    groups = [str(i // 100) for i in range(COUNT)]
    half = coverage._half(groups, COUNT)
    assert all(len({bool(h) for h in half[i : i + 100]}) == 1 for i in range(0, COUNT, 100))
    error = rng.exponential(np.where(half, 1.0, 3.0))
    values, labels = error[:, None], np.zeros((COUNT, 1))
    (row,) = coverage.measure("regression", (values, labels), ["x"], groups)["rows"]
    limits = [np.quantile(error[own], 0.9) for own in (half, ~half)]
    expected = ((error[half] <= limits[1]).sum() + (error[~half] <= limits[0]).sum()) / COUNT
    assert row["coverage"] == pytest.approx(expected, abs=2e-3)
    assert row["limit"] == pytest.approx(max(limits), rel=0.02)


def test_labels_have_limits_for_present_and_absent_and_unknown_ones_do_not_count():
    rng = np.random.default_rng(0)
    labels = (rng.random((COUNT, 1)) < 0.3).astype(np.float32)
    p = (0.4 * labels + rng.uniform(0, 0.6, labels.shape)).clip(0, 1)
    labels[:1000] = np.nan
    found = coverage.measure("multilabel", (p, labels), ["x"])
    present, absent = found["rows"]
    assert (present["name"], absent["name"]) == ("x: present", "x: absent")
    assert present["examples"] + absent["examples"] == COUNT - 1000
    assert present["coverage"] == pytest.approx(0.9, abs=0.03)
    assert absent["coverage"] == pytest.approx(0.9, abs=0.03)


def test_too_few_examples_are_always_covered():
    p, labels = classes(count=30)
    labels[:] = 0
    found = coverage.measure("classification", (p, labels), ["a", "b", "c"])
    assert [row["too_few"] for row in found["rows"]] == [False, True, True]
    assert [row["coverage"] for row in found["rows"]][1:] == [None, None]
