"""The page's errors of predicted numbers, and the points of its scatter plot."""

from typing import Any

import numpy as np

from densenet_jax.report.estimates import Estimates
from densenet_jax.report.label_scores import samples
from densenet_jax.tasks import regression

POINTS = 2000  # largest number of points of a number
ALL_POINTS = 20_000  # and of all numbers together


def about(found: Estimates) -> dict[str, Any]:
    """Returns the errors of all numbers.

    Returns:
      `tasks.regression.assess` and "samples" (of the bootstrap); without the errors if any answer
      is not finite.
    """
    if found.not_finite:
        return {"classes": regression.count(found.labels, found.names)}
    draws = samples(len(found.names), found.values.size)
    values = found.values.astype(np.float64)
    record = regression.assess(values, found.labels, found.names, found.groups, draws)
    return {**record, "samples": draws}


def details(found: Estimates) -> list[dict[str, Any]]:
    """Returns [{"name", "examples" (known ones), "points": [[true, predicted], ...]}, ...].

    If there are too many points, some are drawn at random, the same ones every time.
    """
    limit = min(POINTS, ALL_POINTS // len(found.names))
    rows = []
    for name, values, labels in zip(found.names, found.values.T, found.labels.T, strict=True):
        known = np.flatnonzero(~np.isnan(labels))
        chosen = known
        if len(known) > limit:
            chosen = np.sort(np.random.default_rng(0).choice(known, limit, replace=False))
        points = [[_short(labels[i]), _short(values[i])] for i in chosen]
        rows.append({"name": name, "examples": len(known), "points": points})
    return rows


def _short(value: float) -> float:
    """Rounds to five digits, finer than a chart can show."""
    return float(f"{value:.5g}")
