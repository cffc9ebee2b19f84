"""Metrics on logits with known results."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.classification import hits

NAN = np.nan


@pytest.mark.parametrize(
    ("logits", "label", "rank"),
    [
        ([9.0, 1, 2, 3, 4, 5, 6], 0, 0),
        ([1.0, 9, 8, 7, 6, 5, 0], 5, 4),
        ([1.0, 9, 8, 7, 6, 5, 4], 0, 6),
        ([0.0, 0, 0, 0, 0, 0, 0], 0, 0),  # a constant answer is right for one class alone
        ([0.0, 0, 0, 0, 0, 0, 0], 3, 3),
        ([1.0, 2, 2, 2, 0, 0, 0], 2, 1),
        ([np.inf, np.inf, 0, 0, 0, 0, 0], 1, 1),
    ],
)
def test_the_rank_of_a_label_counts_greater_logits_and_equal_ones_before_it(logits, label, rank):
    found = [bool(hits(jnp.array([logits]), jnp.array([label]), k)[0]) for k in range(1, 8)]
    assert found == [k > rank for k in range(1, 8)]


@pytest.mark.parametrize("logits", [[NAN] * 3, [NAN, 1, 2], [9, NAN, 0], [NAN, 5], [5, NAN]])
@pytest.mark.parametrize("k", [1, 5])
def test_an_example_with_nan_is_a_miss_whatever_the_number_of_classes(logits, k):
    for label in range(len(logits)):
        assert not hits(jnp.array([logits], jnp.float32), jnp.array([label]), k)[0]


def test_two_classes_are_always_among_the_first_five():
    logits = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert hits(logits, jnp.array([0, 0]), 5).all()


def test_scores_of_nan_and_of_missing_metrics_lose_against_any_number():
    top1 = find_task("classification").best
    loss = find_task("classification", "loss").best
    assert top1.score({"top1": 0.0}) > top1.score({"top1": NAN}) == top1.score({})
    assert top1.score({"top1": 0.4}) > top1.score({"top1": 0.3})
    assert loss.score({"loss": 0.3}) > loss.score({"loss": 0.4}) > loss.score({"loss": NAN})


def test_metrics_in_words():
    task = find_task("classification")
    metrics = {"top1": 0.97222, "top5": 0.999, "loss": 0.12345, "raw_top1": 0.5}
    assert task.describe(metrics) == "top-1 97.22%, top-5 99.90%, loss 0.1235"
    assert task.describe(metrics, "raw_") == "top-1 50.00%, top-5 -, loss -"
    assert task.short({"loss": 2.5, "top1": 0.125}) == "loss 2.500  top-1 12.5%"


def test_unknown_names_are_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="'detection'; it must be one of classification"):
        find_task("detection")
    with pytest.raises(ValueError, match="'auroc'; it must be one of top1, top5, loss"):
        find_task("classification", "auroc")
