"""Thresholds by rule, and what they reach."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_curve,
)

from densenet_jax.scores import thresholds
from densenet_jax.scores.labels import ScoresError

NAN = np.nan


def table(examples=200, labels=3):
    rng = np.random.default_rng(0)
    targets = (rng.random((examples, labels)) < 0.3).astype(float)
    p = 1 / (1 + np.exp(-np.round(rng.normal(size=targets.shape) * 3 + 3 * targets)))
    targets[rng.random(targets.shape) < 0.1] = NAN
    return p.astype(np.float32), targets


def test_rates_equal_scikit_learn():
    p, targets = table()
    for i, row in enumerate(thresholds.confusion(p, targets, [0.5, 0.9, float(p[0, 2])])):
        known = ~np.isnan(targets[:, i])
        pair = targets[known, i], p[known, i] >= row["threshold"]
        assert [row[k] for k in ("tn", "fp", "fn", "tp")] == confusion_matrix(
            *pair
        ).ravel().tolist()
        wanted = {
            "sensitivity": recall_score(*pair),
            "specificity": recall_score(*pair, pos_label=0),
            "precision": precision_score(*pair),
            "accuracy": accuracy_score(*pair),
            "f1": f1_score(*pair),
            "balanced_accuracy": balanced_accuracy_score(*pair),
        }
        assert {key: row[key] for key in thresholds.RATES} == pytest.approx(wanted, abs=1e-12)


def test_shares_of_no_examples_are_undefined():
    targets = np.array([[1, 0, NAN], [1, 0, NAN]])
    found = thresholds.confusion(np.full((2, 3), 0.4), targets, [0.5] * 3)
    assert (found[0]["sensitivity"], found[0]["f1"]) == (0, 0)
    assert found[0]["specificity"] is found[0]["precision"] is None
    assert found[0]["balanced_accuracy"] is None
    assert (found[1]["specificity"], found[1]["accuracy"]) == (1, 1)
    assert found[1]["sensitivity"] is found[1]["f1"] is None
    assert [found[2][key] for key in thresholds.RATES] == [None] * 6
    assert thresholds.confusion([0.1], [1], [None]) == [{"threshold": None}]


def test_the_best_threshold_is_chosen_among_all():
    p, targets = table()
    for rule, key in (("youden", "balanced_accuracy"), ("f1", "f1")):
        for i, chosen in enumerate(thresholds.choose(p, targets, rule)):
            known = ~np.isnan(targets[:, i])
            levels = np.unique(p[known, i]).tolist()
            rows = [thresholds.confusion(p[:, i], targets[:, i], [at])[0] for at in levels]
            best = max(row[key] for row in rows)
            assert chosen == max(r["threshold"] for r in rows if r[key] == pytest.approx(best))
            if rule == "youden":
                false, true, at = roc_curve(targets[known, i], p[known, i])
                assert chosen == at[np.argmax(true - false)]


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
@pytest.mark.parametrize(("key", "step"), [("sensitivity", 1), ("specificity", -1)])
def test_a_wanted_share_is_reached_and_not_exceeded_without_need(wanted, key, step):
    p, targets = table()
    for i, chosen in enumerate(thresholds.choose(p, targets, f"{key}={wanted}")):
        levels = np.unique(p[~np.isnan(targets[:, i]), i]).tolist()
        reached = [thresholds.confusion(p[:, i], targets[:, i], [at])[0][key] for at in levels]
        if chosen is None:
            assert key == "specificity"
            assert max(reached) < wanted
        else:
            at = levels.index(chosen)
            assert reached[at] >= wanted
            assert not 0 <= at + step < len(levels) or reached[at + step] < wanted


def test_exact_shares_are_reached_by_hand():
    p, targets = np.arange(20) / 20, np.arange(20) % 2  # ten of each kind, in turn
    assert thresholds.choose(p, targets, "sensitivity=0.9") == [p[3]]
    assert thresholds.choose(p, targets, "specificity=0.9") == [p[17]]
    assert thresholds.choose(p, targets, "specificity=1") == [p[19]]
    assert thresholds.choose(p, 1 - targets, "specificity=1") == [None]


def test_labels_without_both_kinds_have_no_threshold():
    targets = np.array([[1, 0, 1, NAN], [1, 0, 0, NAN]])
    p = np.array([[0.8] * 4, [0.3] * 4])
    assert thresholds.choose(p, targets, "youden") == [None, None, 0.8, None]


@pytest.mark.parametrize(
    "rule",
    [
        *("", "Youden", "f1=0.3", "recall=0.9", "sensitivity", "sensitivity=", "sensitivity=90"),
        *("sensitivity=nan", "specificity=0", "specificity=1e999"),
    ],
)
def test_unknown_rules_are_refused(rule):
    with pytest.raises(ScoresError, match="must be one of youden, f1, sensitivity=SHARE"):
        thresholds.choose([0.1, 0.2], [0, 1], rule)
