"""The page's scores, curves, thresholds and calibration of several labels."""

import itertools
from typing import Any

import numpy as np

from densenet_jax.report.estimates import Estimates
from densenet_jax.scores import intervals, ranking
from densenet_jax.scores.calibration import calibration
from densenet_jax.scores.labels import known
from densenet_jax.tasks import multilabel

CHARTS = 200  # largest number of labels with charts
THRESHOLDS = 120  # about the largest number of positions of the slider
SECONDS = 6.0  # that a bootstrap may take on two cores, if it needs no fewer than FEWEST_SAMPLES
FEWEST_SAMPLES = 200
SECONDS_A_SCORE, SECONDS_A_VALUE = 3e-5, 3e-9  # measured


def about(found: Estimates) -> dict[str, Any]:
    """Returns the scores of all labels, and the table of labels.

    Returns:
      `tasks.multilabel.assess`, "samples" (of the bootstrap) and "defined" (number of labels with a
      score); without the scores if any answer is not finite.
    """
    if found.not_finite:
        return {"classes": multilabel.count(found.labels, found.names)}
    draws = samples(len(found.names), found.values.size)
    at, p = tuple(found.thresholds.tolist()), found.values.astype(np.float64)
    record = multilabel.assess(p, found.labels, found.names, at, found.groups, draws)
    defined = len(found.names) - len(record["undefined"])
    return {**record, "samples": draws, "defined": defined}


def samples(scores: int, values: int, most: int = intervals.SAMPLES) -> int:
    """Returns the number of samples of a bootstrap: fewer where there is very much to compute.

    Args:
      scores: number of scores that a sample computes.
      values: number of probabilities or numbers that it reads.
      most: largest number of samples.
    """
    one = scores * SECONDS_A_SCORE + values * SECONDS_A_VALUE
    return int(np.clip(SECONDS / max(one, 1e-9), FEWEST_SAMPLES, most))


def details(found: Estimates) -> list[dict[str, Any]]:
    """Returns what the charts show of each of the first CHARTS labels.

    Returns:
      [{"name", "positives", "negatives" (numbers of examples), "roc", "precision_recall" (see
      `ranking.curves`), "grid" (see `grid`), "bins", "ece" (see `calibration`)}, ...].  Labels
      without known examples have neither grid nor bins.
    """
    rows = []
    columns = zip(
        found.names, found.values.T, found.labels.T, found.thresholds.tolist(), strict=True
    )
    for name, p, target, threshold in itertools.islice(columns, CHARTS):
        _, own, positive = known(p, target)
        row: dict[str, Any] = {"name": name, "positives": int(positive.sum())}
        row["negatives"] = len(positive) - row["positives"]
        for key, curve in ranking.curves(p, target).items():
            row[key] = None if curve is None else np.round(curve, 4).tolist()
        if len(own):
            bins, row["ece"] = calibration(own, positive)
            row["bins"] = [{k: round(v, 4) for k, v in b.items()} for b in bins]
            row["grid"] = grid(own, positive, threshold)
        rows.append(row)
    return rows


def grid(p: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """Returns how many examples are called positive at each of some thresholds, exactly.

    The thresholds are close together where there are many probabilities, of examples of either
    kind.

    Args:
      p: probabilities of the known examples, float64 [K].
      positive: whether they have the label, bool [K].
      threshold: the model's own one, which is among the thresholds.

    Returns:
      {"thresholds": ascending, "tp", "fp": numbers of true and false positives at each, "at":
      position of the model's own threshold}.
    """
    shares = np.linspace(0, 1, THRESHOLDS // 2)
    values = [np.quantile(p[kind], shares) for kind in (positive, ~positive) if kind.any()]
    # Rounded down, so that an example keeps its side of the threshold that is shown.
    rounded = np.floor(np.concatenate(values) * 1e5) / 1e5
    at = np.unique(np.concatenate([rounded, [0.0, threshold, 1.0]]))
    counts = [
        len(own) - np.searchsorted(own, at) for own in (np.sort(p[positive]), np.sort(p[~positive]))
    ]
    return {
        "thresholds": at.tolist(),
        "tp": counts[0].tolist(),
        "fp": counts[1].tolist(),
        "at": int(np.searchsorted(at, threshold)),
    }
