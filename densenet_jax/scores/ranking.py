"""How well scores separate the examples with a label from those without: AUROC and precision.

Both are sums over the examples from the highest score to the lowest.  `rank` sorts once, and
`Ranked.auroc_and_precision` weighs the examples, so that a bootstrap need not sort again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from densenet_jax.scores.labels import columns, known

CURVE_POINTS = 300  # largest number of points of a curve
CURVE_ERROR = 5e-4  # smallest distance that a curve may move when points are left out


class Ranked(NamedTuple):
    """The known examples of one label from the highest score to the lowest.

    Examples with equal scores form one group, whose order means nothing.

    Attributes:
      order: their numbers, [K].
      positive: positions in `order` of those with the label, [P].
      start, end: positions in `order` of the first example, and after the last one, of the group of
        each of `positive`, [P].
      positive_start, positive_end: the same as positions in `positive`, [P].
    """

    order: np.ndarray
    positive: np.ndarray
    start: np.ndarray
    end: np.ndarray
    positive_start: np.ndarray
    positive_end: np.ndarray

    @property
    def defined(self) -> bool:
        """Whether there are examples with the label and without it."""
        return 0 < len(self.positive) < len(self.order)

    def auroc_and_precision(self, weights: np.ndarray) -> tuple[float, float]:
        """Returns the area under the ROC curve and the average precision.

        The area is the chance that an example with the label has a higher score than one without
        it, where equal scores count half (Mann and Whitney, 1947).  The average precision is the
        mean, over examples with the label, of the precision among all scores at least as high.

        Args:
          weights: how often each example counts, integers [N].

        Returns:
          two numbers from 0 to 1; both NaN unless examples of both kinds have weight.
        """
        own = weights.take(self.order)
        hits = own.take(self.positive)
        total, found = _sums(own), _sums(hits)
        positives, negatives = float(found[-1]), float(total[-1] - found[-1])
        if not (positives > 0 and negatives > 0):
            return np.nan, np.nan
        found_end, total_end = found.take(self.positive_end), total.take(self.end)
        above = total.take(self.start) - found.take(self.positive_start)  # negatives, higher score
        equal_or_above = total_end - found_end
        # Float64 holds these integers exactly: they are below 2**53 for 10**8 examples.
        hits = hits.astype(np.float64)
        area = 1 - (hits * (above + equal_or_above)).sum() / (2 * positives * negatives)
        precision = found_end / np.maximum(total_end, 1)  # 0 / 0 has no weight
        return float(area), float((hits * precision).sum() / positives)


def _sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums of the first 0, 1, 2, ... integers: [N] -> [N + 1]."""
    largest = len(values) * int(values.max(initial=0))
    sums = np.zeros(len(values) + 1, np.int32 if largest < 2**30 else np.int64)
    np.cumsum(values, out=sums[1:], dtype=sums.dtype)
    return sums


def rank(scores: np.ndarray, targets: np.ndarray) -> Ranked:
    """Returns the known examples of a label in the order of their scores.

    Args:
      scores: [N], higher for examples that are more likely to have the label.
      targets: [N]: 0, 1 or NaN (unknown).

    Raises:
      ScoresError: as `labels.known`.
    """
    numbers, found, is_positive = known(scores, targets)
    order = np.argsort(-found, kind="stable")
    ordered, positive = found[order], np.flatnonzero(is_positive[order])
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of all groups
    group = np.searchsorted(starts, positive, side="right")
    start, end = starts[group - 1], np.r_[starts[1:], len(ordered)][group - 1]
    return Ranked(
        numbers[order],
        positive,
        start,
        end,
        np.searchsorted(positive, start),
        np.searchsorted(positive, end),
    )


def by_label(scores: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns AUROC and average precision of every label.

    Args:
      scores: [N] or [N, L]: probabilities or any numbers that are higher for likelier labels.
      targets: of the same shape: 0, 1 or NaN (unknown; the example does not count for the label).

    Returns:
      {"auroc", "average_precision": [L]}; NaN for a label without examples of both kinds.

    Raises:
      ScoresError: the shapes differ, a known score is NaN, or a target is not 0, 1 or NaN.
    """
    scores, targets = columns(scores, targets)
    weights = np.ones(len(scores), np.int64)
    found = np.array(
        [
            rank(*column).auroc_and_precision(weights)
            for column in zip(scores.T, targets.T, strict=True)
        ]
    ).reshape(-1, 2)
    return {"auroc": found[:, 0], "average_precision": found[:, 1]}


def mean_of_defined(values: np.ndarray, names: Sequence[str]) -> tuple[float | None, list[str]]:
    """Returns the mean over the labels with a score, and the names of the labels without one.

    Args:
      values: one score for each label, [L]; NaN: undefined.
      names: of the labels.

    Returns:
      the mean, None if no label has a score; the names of the labels that it leaves out.
    """
    pairs = list(zip(values, names, strict=True))
    defined = [value for value, _ in pairs if not np.isnan(value)]
    mean = float(np.mean(defined)) if defined else None
    return mean, [name for value, name in pairs if np.isnan(value)]


def curves(scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Returns the ROC and the precision-recall curve of one label, for a plot.

    Args:
      scores: [N], higher for examples that are more likely to have the label.
      targets: [N]: 0, 1 or NaN (unknown).

    Returns:
      {"roc": [[share of negatives found, share of positives found], ...], "precision_recall":
      [[recall, precision], ...]} with at most CURVE_POINTS points each; both None for a label
      without examples of both kinds.

    Raises:
      ScoresError: as `by_label`.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # takes a second

    _, found, positive = known(np.asarray(scores), np.asarray(targets))
    if positive.all() or not positive.any():
        return {"roc": None, "precision_recall": None}
    found = np.unique(found, return_inverse=True)[1]  # ranks, as scikit-learn refuses infinity
    false, true, _ = roc_curve(positive, found)
    precision, recall, _ = precision_recall_curve(positive, found, drop_intermediate=True)
    return {"roc": _thinned(false, true), "precision_recall": _thinned(recall, precision)}


def _thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """Returns points of a curve such that every other one is close to the line through them."""
    import cv2

    points, error = np.stack([x, y], axis=1).astype(np.float32), CURVE_ERROR
    while True:
        kept = cv2.approxPolyDP(points[:, None], error, closed=False)[:, 0]  # Douglas, Peucker 1973
        if len(kept) <= CURVE_POINTS:
            return [[round(float(v), 6) for v in point] for point in kept]
        error *= 1.25
