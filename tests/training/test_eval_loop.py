"""Evaluation of a split: every example counts once, and a broken network has no metrics."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.losses import make_loss
from densenet_jax.training import eval_loop

LOGITS = jnp.array([[9.0, 1, 2, 3, 4, 5, 6], [1.0, 9, 8, 7, 6, 5, 0], [1.0, 9, 8, 7, 6, 5, 4]])
LABELS = jnp.array([0, 5, 0])
TASK = find_task("classification")


def evaluate(logits, labels, batch_size, loss="cross_entropy"):
    count = len(logits)
    padded = -(-count // batch_size) * batch_size
    logits = jnp.pad(logits, ((0, padded - count), (0, 0)))
    labels, mask = jnp.pad(labels, (0, padded - count)), jnp.arange(padded) < count
    parts = [slice(i, i + batch_size) for i in range(0, padded, batch_size)]
    batches = [(logits[part], labels[part], mask[part]) for part in parts]
    step = lambda _, batch: (eval_loop.sums(TASK, make_loss(loss), *batch), {})  # noqa: E731
    ((metrics, _),) = eval_loop.evaluate(step, [None], batches, TASK)
    return metrics


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_every_example_counts_once_whatever_the_batches(batch_size):
    result = evaluate(LOGITS, LABELS, batch_size)
    assert result["examples"] == 3
    assert result["top1"] == pytest.approx(1 / 3)
    assert result["top5"] == pytest.approx(2 / 3)
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    expected = -np.mean([log_p[0, 0], log_p[1, 5], log_p[2, 0]])
    assert result["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert "nonfinite" not in result


def test_the_loss_is_the_runs_own():
    result = evaluate(LOGITS, LABELS, 2, loss="binary_cross_entropy")
    targets, p = np.eye(7)[np.asarray(LABELS)], 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1).mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_with_logits_that_are_not_finite_has_no_metrics(bad):
    result = evaluate(LOGITS.at[1, 3].set(bad), LABELS, 2)
    assert (result["examples"], result["nonfinite"]) == (3, 1)
    assert all(np.isnan(result[key]) for key in ("loss", "top1", "top5"))
