"""Calibration error: whether predictions with confidence p are right in a share p of the cases."""

from typing import Any

import numpy as np


def calibration(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> tuple[list[dict[str, Any]], float]:
    """Returns the bins that are not empty, and the expected calibration error (Guo et al., 2017).

    Args:
      confidence: probability of the predicted class, [N].
      correct: whether the prediction is right, bool [N].
      bins: number of equal intervals of confidence from 0 to 1.

    Returns:
      a list of {"low", "high": the interval; "count": number of examples in it; "confidence",
      "accuracy": their means}; and the mean distance between confidence and accuracy, weighted by
      the number of examples.
    """
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    rows, error = [], 0.0
    for i in range(bins):
        inside = which == i
        if not inside.any():
            continue
        mean, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
        rows.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "count": int(inside.sum()),
                "confidence": mean,
                "accuracy": accuracy,
            }
        )
        error += inside.mean() * abs(mean - accuracy)
    return rows, float(error)
