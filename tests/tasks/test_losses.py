"""Losses against values computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.tasks.losses import make_loss

LOGITS = jnp.array([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
TARGETS = jnp.array([[1.0, 0.0, 0.0], [0.7, 0.3, 0.0]])


def by_hand(targets: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-np.float64(LOGITS)))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1)


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({}, [[1, 0, 0], [0.7, 0.3, 0]]),
        ({"threshold": 0.2}, [[1, 0, 0], [1, 1, 0]]),
        ({"threshold": 0.5}, [[1, 0, 0], [1, 0, 0]]),
        ({"threshold": 0.2, "smoothing": 0.3}, [[0.8, 0.1, 0.1], [0.8, 0.8, 0.1]]),
    ],
)
def test_binary_cross_entropy(options, targets):
    got = make_loss("binary_cross_entropy", **options)(LOGITS, TARGETS)
    np.testing.assert_allclose(got, by_hand(np.array(targets)), rtol=1e-5)


def test_smoothed_cross_entropy():
    log_p = np.float64(LOGITS) - np.log(np.exp(np.float64(LOGITS)).sum(-1, keepdims=True))
    smoothed = 0.7 * np.float64(TARGETS) + 0.1
    got = make_loss("cross_entropy", smoothing=0.3)(LOGITS, TARGETS)
    np.testing.assert_allclose(got, -(smoothed * log_p).sum(-1), rtol=1e-5)


def test_losses_of_bfloat16_are_float32():
    for name in ("cross_entropy", "binary_cross_entropy"):
        assert make_loss(name)(LOGITS.astype(jnp.bfloat16), TARGETS).dtype == jnp.float32


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match="'hinge'; it must be one of cross_entropy"):
        make_loss("hinge")
