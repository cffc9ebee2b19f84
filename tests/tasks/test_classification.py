"""Metrics on logits whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.tasks import classification

LOGITS = jnp.array(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # label first
        [1.0, 9, 8, 7, 6, 5, 0],  # label fifth
        [1.0, 9, 8, 7, 6, 5, 4],  # label last
        [np.nan] * 7,
    ]
)
LABELS = jnp.array([0, 5, 0, 0])


def test_hits_by_rank_and_nan_is_a_miss():
    np.testing.assert_array_equal(
        classification.hits(LOGITS, LABELS, 1), [True, False, False, False]
    )
    np.testing.assert_array_equal(
        classification.hits(LOGITS, LABELS, 5), [True, True, False, False]
    )


def test_hits_with_fewer_classes_than_k():
    logits = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert classification.hits(logits, jnp.array([0, 0]), 5).all()


def test_smoothed_cross_entropy_is_the_mixture_of_both_targets():
    logits, label = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([2])
    log_p = np.log(np.exp(logits) / np.exp(logits).sum())
    expected = -(0.9 * log_p[0, 2] + 0.1 * log_p.mean())
    np.testing.assert_allclose(
        classification.cross_entropy(logits, label, 0.1), [expected], rtol=1e-6
    )
    np.testing.assert_allclose(
        classification.cross_entropy(logits, label), [-log_p[0, 2]], rtol=1e-6
    )


def test_loss_of_bfloat16_logits_is_float32():
    assert classification.cross_entropy(LOGITS.astype(jnp.bfloat16), LABELS).dtype == jnp.float32


def test_masked_examples_do_not_count():
    mask = jnp.array([True, False, True, False])
    sums = classification.sums(LOGITS, LABELS, mask)
    assert (int(sums["top1"]), int(sums["top5"]), int(sums["examples"])) == (1, 1, 2)
    assert np.isfinite(sums["loss"])


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_evaluate_weighs_every_example_once_whatever_the_batches(batch_size):
    logits, labels = LOGITS[:3], LABELS[:3]
    padded = -(-3 // batch_size) * batch_size
    logits = jnp.pad(logits, ((0, padded - 3), (0, 0)))
    labels, mask = jnp.pad(labels, (0, padded - 3)), jnp.arange(padded) < 3
    batches = [
        (logits[i : i + batch_size], labels[i : i + batch_size], mask[i : i + batch_size])
        for i in range(0, padded, batch_size)
    ]
    result = classification.evaluate(lambda _, batch: classification.sums(*batch), None, batches)
    assert result["examples"] == 3
    assert result["top1"] == pytest.approx(1 / 3)
    expected = classification.cross_entropy(LOGITS[:3], LABELS[:3]).mean()
    assert result["loss"] == pytest.approx(float(expected), rel=1e-6)
