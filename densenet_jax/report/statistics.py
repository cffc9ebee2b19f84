"""Statistics of predictions: the confusion matrix and metrics of each class."""

from typing import Any

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix: counts by label and prediction, int [num_classes, num_classes].

    Args:
      labels: [N].
      predicted: classes, [N].
      num_classes: number of classes.
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def worst_pairs(matrix: np.ndarray, limit: int) -> list[dict[str, Any]]:
    """Returns the most frequent confusions, most frequent first.

    Args:
      matrix: counts by label and prediction.
      limit: largest number of pairs.

    Returns:
      [{"label", "predicted", "count", "share" (of the label's examples)}, ...].
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    totals = matrix.sum(1)
    return [
        {
            "label": int(i),
            "predicted": int(j),
            "count": int(wrong[i, j]),
            "share": wrong[i, j] / totals[i],
        }
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]


def cluster_order(matrix: np.ndarray) -> np.ndarray:
    """Returns an order of the classes in which classes that are often confused are neighbours.

    Hierarchical clustering with average linkage; classes are the closer, the larger the share of
    examples confused between them.

    Args:
      matrix: counts by label and prediction.
    """
    if len(matrix) < 3:
        return np.arange(len(matrix))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    alike = share + share.T
    distance = 2 - alike.clip(0, 2)
    np.fill_diagonal(distance, 0)
    return hierarchy.leaves_list(hierarchy.linkage(squareform(distance), "average"))


def per_class(matrix: np.ndarray, labels: np.ndarray, in_top5: np.ndarray) -> list[dict[str, Any]]:
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
    top5 = np.bincount(labels, in_top5, len(matrix))
    rows = []
    for i, (row, column) in enumerate(zip(matrix, matrix.T, strict=True)):
        hits, count, named = int(row[i]), int(row.sum()), int(column.sum())
        others = row.copy()
        others[i] = 0
        rows.append(
            {
                "label": i,
                "examples": count,
                "recall": hits / count if count else None,
                "precision": hits / named if named else None,
                "f1": 2 * hits / (count + named) if count + named else None,
                "top5": top5[i] / count if count else None,
                "confused": int(others.argmax()) if others.any() else None,
                "confused_count": int(others.max()),
            }
        )
    return rows
