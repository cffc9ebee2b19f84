"""Selects the examples shown as pictures: the worst predictions of each label or number."""

import numpy as np

from densenet_jax.report.estimates import Estimates

PICTURES = 48  # largest number of pictures of each kind of mistake, of all labels together
EACH = 9  # largest number of pictures of each kind of mistake for one label
EACH_NUMBER = 18  # the same for one number


def pictured(found: Estimates) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples to show and the label or number for which each is shown.

    These are the surest false positives and the surest false negatives, or the largest errors.  If
    there are too many labels to show some of each, the surest of all are shown.

    Returns:
      positions in the arrays of `found`, int [Q], and labels, int [Q].
    """
    if found.task == "regression":
        kinds, each = [_relative_errors(found)], EACH_NUMBER
    else:
        kinds, each = [sureness(found, positive) for positive in (False, True)], EACH
    chosen = [_worst(values, each) for values in kinds]
    return np.concatenate([r for r, _ in chosen]), np.concatenate([c for _, c in chosen])


def sureness(found: Estimates, positive: bool) -> np.ndarray:
    """Returns how sure the model is of its wrong answers, [N, L]; NaN where an answer is right.

    Args:
      found: the answers for several labels.
      positive: True for false negatives (the label is present), False for false positives.
    """
    called = found.values >= found.thresholds
    if positive:
        return np.where((found.labels == 1) & ~called, 1 - found.values, np.nan)
    return np.where((found.labels == 0) & called, found.values, np.nan)


def _relative_errors(found: Estimates) -> np.ndarray:
    """Returns absolute errors relative to the spread of each number, [N, L]; NaN: unknown."""
    known = ~np.isnan(found.labels)
    spread = [
        float(np.std(c[k])) if k.any() else 0.0
        for c, k in zip(found.labels.T, known.T, strict=True)
    ]
    errors = np.abs(found.values - found.labels) / np.array([s or 1.0 for s in spread])
    return np.where(np.isfinite(errors), errors, np.nan)


def _worst(values: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns of large values: the largest of each column before any second."""
    order = np.argsort(-values, axis=0, kind="stable")[:each]  # NaN comes last
    columns = np.broadcast_to(np.arange(values.shape[1]), order.shape).ravel()
    rows, ranks = order.ravel(), np.repeat(np.arange(len(order)), values.shape[1])
    largest = values[rows, columns]
    kept = np.lexsort((-largest, ranks))[: PICTURES + np.isnan(largest).sum()]
    kept = kept[~np.isnan(largest[kept])][:PICTURES]
    kept = kept[np.lexsort((ranks[kept], columns[kept]))]
    return rows[kept], columns[kept]
