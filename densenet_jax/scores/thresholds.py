"""Thresholds of probabilities, chosen by a rule, and the sensitivity and specificity they reach.

An example is called positive if its probability is at least the threshold.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_jax.scores.labels import ScoresError, columns, known, optional

RULES = ("youden", "f1", "sensitivity=SHARE", "specificity=SHARE")
RATES = ("sensitivity", "specificity", "precision", "accuracy", "f1", "balanced_accuracy")
UNKNOWN = 4  # the cell of an example that does not count


def cells(p: np.ndarray, targets: np.ndarray, at: Sequence[float | None]) -> np.ndarray:
    """Returns the cell of the confusion matrix in which each example is, int8 [L, N].

    Args:
      p: probabilities, [N] or [N, L].
      targets: of the same shape: 0, 1 or NaN (unknown).
      at: the threshold of each label; None: it has none.

    Returns:
      0: true negative, 1: false positive, 2: false negative, 3: true positive, 4: the target is
      unknown or the label has no threshold.

    Raises:
      ScoresError: the shapes or the number of thresholds differ, or see `labels.known`.
    """
    p, targets = columns(p, targets)
    if len(at) != p.shape[1]:
        raise ScoresError(f"there are {len(at)} thresholds for {p.shape[1]} labels.")
    found = np.full(p.shape[::-1], UNKNOWN, np.int8)
    for row, column, target, threshold in zip(found, p.T, targets.T, at, strict=True):
        if threshold is not None:
            numbers, own, positive = known(column, target)
            row[numbers] = 2 * positive + (own >= threshold)
    return found


def counts(cells: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the number of examples in each cell, [L, 4] in the order of `cells`.

    Args:
      cells: as `cells` returns them, [L, N].
      weights: how often each example counts, [N]; None: once.
    """
    each = [np.bincount(row, weights, minlength=5)[:UNKNOWN] for row in cells]
    return np.array(each).reshape(-1, 4)


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scores at a threshold.

    Args:
      counts: numbers of true negatives, false positives, false negatives and true positives,
        [L, 4].

    Returns:
      for each of RATES the scores [L]; NaN where one is a share of no examples.
    """
    tn, fp, fn, tp = np.asarray(counts, np.float64).T
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, an undefined score
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp),
            "accuracy": (tp + tn) / (tp + tn + fp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
        }


def confusion(
    p: np.ndarray, targets: np.ndarray, at: Sequence[float | None]
) -> list[dict[str, Any]]:
    """Returns for each label what its threshold reaches.

    Args:
      p, targets, at: as of `cells`.

    Returns:
      [{"threshold", "tn", "fp", "fn", "tp": numbers of examples, and the RATES}], None where a
      score is undefined; {"threshold": None} alone for a label without a threshold.

    Raises:
      ScoresError: as `cells`.
    """
    table = counts(cells(p, targets, at))
    scores = rates(table)
    rows: list[dict[str, Any]] = []
    for i, threshold in enumerate(at):
        row: dict[str, Any] = {"threshold": threshold}
        if threshold is not None:
            row |= {key: int(n) for key, n in zip(("tn", "fp", "fn", "tp"), table[i], strict=True)}
            row |= {key: optional(values[i]) for key, values in scores.items()}
        rows.append(row)
    return rows


def choose(p: np.ndarray, targets: np.ndarray, rule: str) -> list[float | None]:
    """Returns a threshold for every label, which is one of its probabilities.

    Args:
      p, targets: as of `cells`.
      rule: "youden" (the highest sensitivity + specificity; Youden, 1950), "f1" (the highest F1),
        "sensitivity=0.9" (the highest threshold that reaches this sensitivity) or
        "specificity=0.9" (the lowest one that reaches this specificity).  Of several that are the
        best by the first two rules, the highest is chosen.

    Returns:
      [L]; None for a label without examples of both kinds, or if even the highest probability does
      not reach the specificity.

    Raises:
      ScoresError: the rule is unknown, or as `cells`.
    """
    name, wanted = _rule(rule)
    p, targets = columns(p, targets)
    return [_threshold(*column, name, wanted) for column in zip(p.T, targets.T, strict=True)]


def _rule(rule: str) -> tuple[str, float]:
    """Returns the name of a rule and the share that it wants, 0 for rules without one."""
    name, separator, share = rule.partition("=")
    if rule in ("youden", "f1"):
        return rule, 0.0
    try:
        wanted = float(share) if separator and name in ("sensitivity", "specificity") else -1.0
    except ValueError:
        wanted = -1.0
    if not 0 < wanted <= 1:
        raise ScoresError(
            f"the rule for thresholds is {rule!r}; it must be one of {', '.join(RULES)}, "
            "where SHARE is a number above 0, at most 1."
        )
    return name, wanted


def _threshold(p: np.ndarray, targets: np.ndarray, name: str, wanted: float) -> float | None:
    """Returns the threshold of one label, see `choose`."""
    _, found, positive = known(p, targets)
    if positive.all() or not positive.any():
        return None
    levels, group = np.unique(-found, return_inverse=True)  # from the highest probability
    tp = np.cumsum(np.bincount(group, positive))
    fp = np.cumsum(np.bincount(group, ~positive))
    scores = rates(np.stack([fp[-1] - fp, fp, tp[-1] - tp, tp], axis=1))
    if name == "youden":
        best = np.argmax(scores["balanced_accuracy"])
    elif name == "f1":
        best = np.argmax(scores["f1"])
    elif name == "sensitivity":
        best = np.argmax(scores["sensitivity"] >= wanted)
    else:
        best = np.count_nonzero(scores["specificity"] >= wanted) - 1
    return float(-levels[best]) if best >= 0 else None
