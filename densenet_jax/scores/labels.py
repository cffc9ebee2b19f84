"""The columns of a table of scores: one label each, of which some examples may be unknown."""

import numpy as np


class ScoresError(ValueError):
    """Scores cannot be computed or used; the message names the culprit and the remedy."""


def columns(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and targets as [N, L]; [N] is one label.

    Raises:
      ScoresError: their shapes differ, or are neither [N] nor [N, L].
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or scores.ndim not in (1, 2):
        raise ScoresError(
            f"the scores have the shape {list(scores.shape)} and the targets "
            f"{list(targets.shape)}; both must be [examples] or [examples, labels]."
        )
    shape = (len(scores), 1) if scores.ndim == 1 else scores.shape
    return scores.reshape(shape), targets.reshape(shape)


def known(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the examples of one label that are known.

    Args:
      scores: [N], higher for examples that are more likely to have the label.
      targets: [N]: 0, 1 or NaN (unknown).

    Returns:
      numbers of the known examples, [K]; their scores, float64 [K]; their targets, bool [K].

    Raises:
      ScoresError: a known example has a score that is NaN, or a target is not 0, 1 or NaN.
    """
    targets = targets.astype(np.float64)
    numbers = np.flatnonzero(~np.isnan(targets))
    found, positive = scores[numbers].astype(np.float64), targets[numbers]
    if wrong := np.count_nonzero((positive != 0) & (positive != 1)):
        raise ScoresError(f"{wrong} of {len(targets)} targets are not 0, 1 or NaN (unknown).")
    if broken := np.count_nonzero(np.isnan(found)):
        raise ScoresError(
            f"the scores of {broken} of {len(found)} examples are NaN; leave these examples out, "
            "say how many they are, or repair the network."
        )
    return numbers, found, positive.astype(bool)


def optional(value: float) -> float | None:
    """Returns a number for JSON: None if it is NaN, which is an undefined score."""
    return None if np.isnan(value) else float(value)
