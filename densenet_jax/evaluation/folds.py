"""Cross-validation: a run for each fold, and the scores of all folds together."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_jax.evaluation.splits import Assessed
from densenet_jax.tasks.task import Task


def summarize(task: Task, folds: Sequence[Assessed]) -> dict[str, Any]:
    """Returns the metrics over the folds of a cross-validation.

    Args:
      task: what the networks were trained for.
      folds: the evaluation of each fold's network on its own validation split, in order.

    Returns:
      {"folds": the metrics of each fold; "mean", "std" (of a sample): by metric, over the folds
      that have it; "pooled": `Task.summary` of the answers for all examples together, each by the
      network that was not trained on it}.
    """
    keys = [metric.key for metric in task.columns]
    rows: list[dict[str, Any]] = [{key: fold.record.get(key) for key in keys} for fold in folds]
    means, spreads = {}, {}
    for key in keys:
        values = [float(row[key]) for row in rows if row[key] is not None]
        means[key] = float(np.mean(values)) if values else None
        spreads[key] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    joined = {
        key: np.concatenate([fold.scores[key] for fold in folds])
        for key in folds[0].scores
        if key != "index"
    }
    each = [fold.source.groups_of(fold.scores["index"]) or [] for fold in folds]
    groups = [group for own in each for group in own]
    pooled = task.summary(joined, folds[0].source.class_names, None, groups or None)
    return {"folds": rows, "mean": means, "std": spreads, "pooled": pooled}


def describe(task: Task, record: dict[str, Any], path: pathlib.Path) -> str:
    """Returns the summary in lines: mean and standard deviation over the folds, and pooled."""
    lines = [f"{len(record['folds'])} folds, each network on the part it was not trained on:"]
    for metric in task.columns:
        mean, spread = (metric.show({metric.key: record[k][metric.key]}) for k in ("mean", "std"))
        pooled = metric.show(record["pooled"])
        lines.append(f"  {metric.title}: mean {mean}, standard deviation {spread}, pooled {pooled}")
    return "\n".join([*lines, f"written: {path}"])
