"""Errors of predicted numbers."""

import numpy as np

from densenet_jax.scores.labels import ScoresError, columns


def errors(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns the errors of every target.

    Args:
      predictions: [N] or [N, L].
      targets: of the same shape; NaN: unknown, the example does not count.
      weights: how often each example counts, [N]; None: once.

    Returns:
      {"mae": mean absolute error, "rmse": root of the mean squared error, "r2": share of the
      variance that is explained, [L]}; NaN without known examples, and r2 also if all known targets
      are equal.

    Raises:
      ScoresError: the shapes differ, or a known target or its prediction is not finite.
    """
    predictions, targets = (x.astype(np.float64) for x in columns(predictions, targets))
    known = ~np.isnan(targets)
    if broken := np.count_nonzero(known & ~(np.isfinite(predictions) & np.isfinite(targets))):
        raise ScoresError(
            f"{broken} predictions or targets are not finite; leave their examples out, and say "
            "how many they are."
        )
    each = np.ones(len(targets)) if weights is None else np.asarray(weights, np.float64)
    weight = np.where(known, each[:, None], 0)
    targets = np.where(known, targets, 0)
    error = np.where(known, predictions - targets, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, an undefined score
        total = weight.sum(axis=0)
        squares = (weight * error**2).sum(axis=0)
        mean = (weight * targets).sum(axis=0) / total
        spread = (weight * (targets - mean) ** 2).sum(axis=0)
        counted = weight > 0
        lowest = np.where(counted, targets, np.inf).min(axis=0, initial=np.inf)
        highest = np.where(counted, targets, -np.inf).max(axis=0, initial=-np.inf)
        return {
            "mae": (weight * np.abs(error)).sum(axis=0) / total,
            "rmse": np.sqrt(squares / total),
            "r2": np.where(lowest < highest, 1 - squares / spread, np.nan),
        }
