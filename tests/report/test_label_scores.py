"""What the page shows of several labels: exact counts at every threshold, and curves."""

import dataclasses

import numpy as np

from densenet_jax.report import label_scores
from densenet_jax.scores import thresholds


def test_the_scores_of_each_label(labels):
    record = label_scores.about(labels)
    assert record["undefined"] == ["never"]
    assert record["defined"] == 2
    even, odd, never = record["classes"]
    assert even["examples"] == int((~np.isnan(labels.labels[:, 0])).sum())
    assert record["auroc"] == (even["auroc"] + odd["auroc"]) / 2  # without the label "never"
    low, high = even["auroc_interval"]
    assert low < even["auroc"] < high
    assert never["auroc"] is None
    assert even["threshold"] == 0.5


def test_no_scores_if_an_answer_is_not_finite(labels):
    values = labels.values.copy()
    values[3, 1] = np.nan
    record = label_scores.about(dataclasses.replace(labels, values=values))
    assert [sorted(row) for row in record["classes"]] == [["class", "examples", "positives"]] * 3
    assert "auroc" not in record


def test_counts_of_the_grid_are_exact_at_the_written_thresholds():
    rng = np.random.default_rng(0)
    p = rng.random(2000).astype(np.float32).astype(np.float64) ** 4  # most are close to 0
    positive = rng.random(2000) < p
    threshold = float(p[17])
    grid = label_scores.grid(p, positive, threshold)
    at = grid["thresholds"]
    assert at[grid["at"]] == threshold
    assert (at[0], at[-1]) == (0, 1)
    assert sorted(at) == at
    assert len(at) < 200
    assert np.median(at) < 0.3  # they are close where the probabilities are
    for t, tp, fp in zip(at, grid["tp"], grid["fp"], strict=True):
        _, false, _, true = thresholds.counts(thresholds.cells(p, positive.astype(float), [t]))[0]
        assert (tp, fp) == (true, false)


def test_details_of_labels(labels):
    even, odd, never = label_scores.details(labels)
    assert even["roc"][0] == [0, 0]
    assert even["roc"][-1] == [1, 1]
    assert odd["positives"] + odd["negatives"] == int((~np.isnan(labels.labels[:, 1])).sum())
    assert never["roc"] is None
    assert never["grid"]["tp"] == [0] * len(never["grid"]["tp"])
    unknown = dataclasses.replace(labels, labels=np.full_like(labels.labels, np.nan))
    assert "grid" not in label_scores.details(unknown)[0]


def test_fewer_samples_for_very_many_answers():
    assert label_scores.samples(14, 14 * 20_000) == 1000
    assert label_scores.samples(1000, 10**9) == label_scores.FEWEST_SAMPLES
