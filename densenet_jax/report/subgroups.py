"""Scores of subgroups: the examples with the same value in a column, such as sex or device."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from densenet_jax.evaluation import per_example
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.label_scores import CHARTS, samples
from densenet_jax.report.predictions import Predictions
from densenet_jax.scores import intervals, ranking, regression
from densenet_jax.scores.labels import optional
from densenet_jax.tasks.task import bounds

VALUES = 20  # largest number of values of a column that has a row for each
ROWS = 100  # largest number of rows
NUMBERS = 6  # largest number of predicted numbers that have a column
BLANK = "(blank)"
SAMPLES = 500  # largest number of samples for an interval

Score = Callable[[np.ndarray, list[str] | None], dict[str, Any]]


def table(found: Predictions | Estimates) -> dict[str, Any] | None:
    """Returns the scores of each subgroup.

    Returns:
      {"heads": names of the scores; "rows": [{"column", "value", "examples", "groups" (their
      number; None: unknown), "cells": [(score, interval), ...]; of several labels also "labels"
      (number of those with an AUROC) and "by_label" ([AUROC, low, high], [AUROC] or None for each
      label with charts)}, ...]; "left_out": names and numbers of values of the columns without
      rows; "most": values that a column may have; "grouped": whether groups are known}; None if no
      columns are known, or if any answer is not finite.
    """
    columns = {
        key.removeprefix(per_example.COLUMN): values
        for key, values in found.columns.items()
        if key.startswith(per_example.COLUMN)
    }
    if not columns or (isinstance(found, Estimates) and found.not_finite):
        return None
    groups = found.columns.get(per_example.GROUP)
    left_out: list[str] = []
    shown: list[tuple[str, str]] = []
    for name, column in columns.items():
        values = sorted(set(column.tolist()), key=_natural)
        if 1 < len(values) <= VALUES and len(shown) + len(values) <= ROWS:
            shown += [(name, value) for value in values]
        else:
            left_out.append(f"{name} ({len(values):,} {'value' if len(values) == 1 else 'values'})")
    heads, score = _score(found, len(shown), len({name for name, _ in shown}))
    rows: list[dict[str, Any]] = []
    for name, value in shown:
        inside = np.flatnonzero(columns[name] == value)
        own = None if groups is None else groups[inside].tolist()
        row = {"column": name, "value": value or BLANK, "examples": len(inside)}
        row["groups"] = None if own is None else len(set(own))
        rows.append(row | score(inside, own))
    return {
        "heads": heads,
        "rows": rows,
        "left_out": left_out,
        "most": VALUES,
        "grouped": groups is not None,
    }


def _score(found: Predictions | Estimates, rows: int, columns: int) -> tuple[list[str], Score]:
    """Returns names of scores, and a function from examples and their groups to entries of a row.

    Args:
      found: the answers.
      rows: number of subgroups.
      columns: number of columns that they are of.
    """
    if isinstance(found, Predictions):
        correct = found.correct

        def accuracy(inside: np.ndarray, groups: list[str] | None) -> dict[str, Any]:
            (margin,) = intervals.of_means(correct[inside], groups, SAMPLES)
            return {"cells": [(float(correct[inside].mean()), bounds(margin))]}

        return ["accuracy"], accuracy
    values, labels = found.values.astype(np.float64), found.labels
    draws = samples(rows * values.shape[1], columns * values.size, SAMPLES)
    if found.task == "regression":
        names = found.names[:NUMBERS]

        def errors(inside: np.ndarray, groups: list[str] | None) -> dict[str, Any]:
            own, true = values[inside, : len(names)], labels[inside, : len(names)]
            mae = regression.errors(own, true)["mae"]
            margins = intervals.of_means(np.abs(own - true), groups, draws)
            cells = zip(map(optional, mae), map(bounds, margins), strict=True)
            return {"cells": list(cells)}

        return names, errors

    def auroc(inside: np.ndarray, groups: list[str] | None) -> dict[str, Any]:
        own, true = values[inside], labels[inside]
        areas = ranking.by_label(own, true)["auroc"]
        margins = intervals.of_ranking(own, true, groups, draws)
        mean, _ = ranking.mean_of_defined(areas, found.names)
        by_label = [
            None if np.isnan(area) else [round(float(area), 4), *(bounds(margin) or ())]
            for area, margin in zip(areas, margins["auroc"], strict=True)
        ]
        labels_with = int((~np.isnan(areas)).sum())
        mean_cell = (mean, bounds(margins["mean_auroc"]))
        return {"cells": [mean_cell], "labels": labels_with, "by_label": by_label[:CHARTS]}

    return ["mean AUROC"], auroc


def _natural(value: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before other values."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (1, 0.0, value) if math.isnan(number) else (0, number, value)
