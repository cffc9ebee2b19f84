"""Statistics of predictions: the confusion matrix and metrics of each class.

The matrix is sparse: with many classes only few pairs occur, and a full matrix would not fit into
memory.
"""

from typing import Any

import numpy as np
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> sparse.csr_array:
    """Returns the confusion matrix: counts by label and prediction, int [num_classes, num_classes].

    Args:
      labels: [N].
      predicted: classes, [N].
      num_classes: number of classes.
    """
    ones = np.ones(len(labels), np.int64)
    shape = (num_classes, num_classes)
    return sparse.coo_array((ones, (labels, predicted)), shape).tocsr()  # which sums equal pairs


def worst_pairs(matrix: sparse.csr_array, limit: int) -> list[dict[str, Any]]:
    """Returns the most frequent confusions, most frequent first.

    Args:
      matrix: counts by label and prediction.
      limit: largest number of pairs.

    Returns:
      [{"label", "predicted", "count", "share" (of the label's examples)}, ...].
    """
    wrong, totals = _wrong(matrix), matrix.sum(axis=1)
    order = np.lexsort((wrong.col, wrong.row, -wrong.data))[:limit]
    cells = zip(wrong.row[order], wrong.col[order], wrong.data[order], strict=True)
    return [
        {"label": int(i), "predicted": int(j), "count": int(count), "share": count / totals[i]}
        for i, j, count in cells
    ]


def cluster_order(matrix: sparse.csr_array) -> np.ndarray:
    """Returns an order of the classes in which classes that are often confused are neighbours.

    Hierarchical clustering with average linkage; classes are the closer, the larger the share of
    examples confused between them.  Memory and time grow with the square of the number of classes.

    Args:
      matrix: counts by label and prediction.
    """
    if matrix.shape[0] < 3:
        return np.arange(matrix.shape[0])
    counts = matrix.toarray()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    alike = share + share.T
    distance = 2 - alike.clip(0, 2)
    np.fill_diagonal(distance, 0)
    return hierarchy.leaves_list(hierarchy.linkage(squareform(distance), "average"))


def per_class(
    matrix: sparse.csr_array, labels: np.ndarray, in_top5: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the metrics of each class, in label order.

    Args:
      matrix: counts by label and prediction.
      labels: [N].
      in_top5: whether the label is among the five likeliest classes, bool [N].

    Returns:
      [{"label", "examples" (their number), "recall", "precision", "f1", "top5", "confused" (the
      class it is most often taken for), "confused_count"}, ...].  Metrics without examples and
      "confused" without mistakes are None.
    """
    size = matrix.shape[0]
    top5 = np.bincount(labels, in_top5, size)
    right, examples, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    most: dict[int, tuple[int, int]] = {}  # label -> (class it is most often taken for, count)
    for pair in reversed(worst_pairs(matrix, matrix.nnz)):
        most[pair["label"]] = pair["predicted"], pair["count"]
    rows = []
    for i in range(size):
        hits, count, named = int(right[i]), int(examples[i]), int(predicted[i])
        confused, confused_count = most.get(i, (None, 0))
        rows.append(
            {
                "label": i,
                "examples": count,
                "recall": hits / count if count else None,
                "precision": hits / named if named else None,
                "f1": 2 * hits / (count + named) if count + named else None,
                "top5": top5[i] / count if count else None,
                "confused": confused,
                "confused_count": confused_count,
            }
        )
    return rows


def _wrong(matrix: sparse.csr_array) -> sparse.coo_array:
    """Returns the counts off the diagonal."""
    cells = matrix.tocoo()
    off = cells.row != cells.col
    return sparse.coo_array((cells.data[off], (cells.row[off], cells.col[off])), matrix.shape)
