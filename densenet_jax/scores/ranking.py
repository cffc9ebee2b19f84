"""AUROC and average precision: how well scores separate the examples with a label from the rest.

Both are sums over the examples from the highest score to the lowest.  `rank` sorts once, and
`Ranked.auroc_and_precision` weighs the examples, so that a bootstrap need not sort again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from densenet_jax.scores.labels import columns, known

CURVE_POINTS = 300  # largest number of points of a curve
CURVE_ERROR = 5e-4  # smallest distance that a curve may move when points are left out


class Ranked(NamedTuple):
    """The known examples of one label in bins between its positive examples, highest score first.

    The examples with the label have M different scores.  A rare label has few, so that the sums of
    its bins are much shorter than the list of examples.

    Attributes:
      bins: 0 or 1, float32 [3 M + 1, N].  The first M rows have the examples without the label
        whose score is between one of these M scores and the higher one before it; the next M rows
        those whose score equals it; the next M rows the examples with the label; the last row
        those without it below all M scores.
      defined: whether there are examples with the label and without it.
    """

    bins: sparse.csr_array
    defined: bool

    def auroc_and_precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns the area under the ROC curve and the average precision.

        The area is the chance that an example with the label has a higher score than one without
        it, where equal scores count half (Mann and Whitney, 1947).  The average precision is the
        mean, over examples with the label, of the precision among all scores at least as high.

        Args:
          weights: how often each example counts, whole numbers [N], or [N, B] of B samples; in
            float32 their sum must be below 2**24, so that all sums are exact.

        Returns:
          two numbers from 0 to 1, [2] or [2, B]; NaN unless examples of both kinds have weight.
        """
        if not self.defined:
            return np.full((2, *weights.shape[1:]), np.nan)
        sums, count = self.bins @ weights, self.bins.shape[0] // 3
        # Float64 holds these integers exactly: they are below 2**53 for 10**8 examples.
        equal, hits = sums[count : 2 * count], sums[2 * count : -1].astype(np.float64)
        found = np.cumsum(hits, axis=0)
        through = np.cumsum(sums[:count] + equal, axis=0, dtype=np.float64)
        positives, negatives = found[-1], sums[-1] + through[-1]
        precision = np.maximum(found + through, 1)  # 0 / 0 has no weight
        np.divide(found, precision, out=precision)
        through *= 2  # in place: the arrays fit the cache, new ones may not
        through -= equal
        pairs, precise = (np.einsum("k...,k...->...", hits, x) for x in (through, precision))
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.stack([1 - pairs / (2 * positives * negatives), precise / positives])
        return np.where((positives > 0) & (negatives > 0), scores, np.nan)


def rank(scores: np.ndarray, targets: np.ndarray) -> Ranked:
    """Returns the known examples of a label in bins by their scores.

    Args:
      scores: [N], higher for examples that are more likely to have the label.
      targets: [N]: 0, 1 or NaN (unknown).

    Raises:
      ScoresError: as `labels.known`.
    """
    numbers, found, positive = known(scores, targets)
    levels = np.unique(-found[positive])  # from the highest score
    place, count = np.searchsorted(levels, -found), len(levels)
    equal = np.append(levels, np.inf)[place] == -found
    row = np.where(positive, 2 * count + place, np.where(equal, count + place, place))
    row[place == count] = 3 * count
    ones = np.ones(len(numbers), np.float32)
    bins = sparse.csr_array((ones, (row, numbers)), shape=(3 * count + 1, len(scores)))
    return Ranked(bins, 0 < positive.sum() < len(positive))


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
