"""The data of one run in the structure that the page's templates use."""

import functools
import math
from typing import Any

import numpy as np
from scipy import sparse

from densenet_jax.evaluation import per_example
from densenet_jax.report import gallery, label_scores, number_scores, statistics, subgroups
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.history import is_number
from densenet_jax.report.predictions import Predictions
from densenet_jax.report.run_files import Run
from densenet_jax.scores import intervals
from densenet_jax.scores.calibration import calibration
from densenet_jax.tasks.task import bounds

WHOLE = 30  # largest number of classes for which the confusion matrix is shown as a table
PICTURE = 2000  # largest number for which it is shown as a picture
CLASSES = 5000  # largest number of classes in the table, with intervals; of more the lowest F1
PAIRS = 40  # number of pairs in the table of the most frequent mistakes


def findings(run: Run) -> dict[str, Any]:
    """Returns the templates' variables for a run; those of sections without data are None or []."""
    insight, answered = run.insight, answers(run.predictions)
    return {
        "headline": headline(run, answered["predictions"]),
        **answered,
        "model": insight.get("model"),
        "examined_step": insight.get("step"),
        "figure5": heat_maps(insight.get("reuse")),
        "ablation": heat_maps(insight.get("ablation"), one_scale=True),
        "ablation_examples": insight.get("ablation_examples"),
        "environment": run.environments[-1] if run.environments else None,
        "starts": len(run.environments),
    }


@functools.lru_cache(maxsize=1)  # the pages of a live run show the same answers again and again
def answers(found: Predictions | Estimates | None) -> dict[str, Any]:
    """Returns the templates' variables for the model's answers.

    Returns:
      {"predictions": their scores; None without answers}; with answers also "kind" (the task),
      "found" (the answers), "subgroups" (see `subgroups.table`), "pictures" (see `gallery`),
      "confusion" (of classes) and "details" (for charts).
    """
    if found is None:
        return {"predictions": None}
    known: dict[str, Any] = {"found": found, "subgroups": subgroups.table(found)}
    if isinstance(found, Predictions):
        predictions = about(found)
        known |= {"kind": "classification", "confusion": confusion(found)}
        known |= {"details": predictions["bins"], "pictures": gallery.of_classes(found)}
        return known | {"predictions": predictions}
    scores = label_scores if found.task == "multilabel" else number_scores
    known |= {"kind": found.task, "pictures": gallery.of_estimates(found)}
    known["details"] = [] if found.not_finite else scores.details(found)
    return known | {"predictions": scores.about(found)}


def headline(run: Run, scores: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Returns (name, value, remark) of each number at the top of the page.

    Args:
      run: the run.
      scores: of its stored answers, see `answers`; None: there are none.
    """
    rows, best, last = [], run.history.best, run.history.last
    metric, answered = run.task.best, _of_answers(run, scores)
    # The number of the answers, which has an interval, takes the place of the same one in the log.
    step = run.predictions.step if answered and run.predictions else None
    if best and not (best["step"] == step and metric == run.task.measured[0]):
        title, remark = f"best {metric.title}", f"evaluated at step {best['step']:,}"
        rows.append((title, metric.show(best), remark))
    rows += answered
    if last:
        epoch = last.get("epoch")
        remark = f"{epoch:.4g} epochs" if is_number(epoch) else ""
        rows.append(("steps", f"{last['step']:,}", remark))
    speeds = run.history.series.get(("train", "images_per_second"))
    if speeds is not None:
        rows.append(("throughput", f"{np.median(speeds[:, 2]):,.0f}", "images/s (median)"))
    if run.history.seconds:
        rows.append(("time", duration(run.history.seconds), "training and evaluation"))
    if model := run.insight.get("model"):
        macs = model["published_macs"]
        macs = f"{macs / 1e9:.3g} G" if macs > 1e8 else f"{macs / 1e6:.3g} M"
        rows.append(("parameters", f"{model['parameters']:,}", f"{macs} multiply-adds per image"))
    return rows


def _of_answers(run: Run, scores: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Returns the first metric of several labels or numbers with its interval, as in `headline`."""
    if not (isinstance(run.predictions, Estimates) and scores and "samples" in scores):
        return []
    metric, classes = run.task.measured[0], scores["classes"]
    title, remark = metric.title, f"of step {run.predictions.step:,}"
    margin = scores.get("intervals", {}).get(metric.key)
    if len(classes) > 1:
        title = f"mean {title}"
    else:
        margin = classes[0][f"{metric.key}_interval"]
    if margin:
        remark = f"95 % interval {margin[0]:.4g} to {margin[1]:.4g}, {remark}"
    return [(title, metric.show(scores), remark)]


def about(found: Predictions) -> dict[str, Any]:
    """Returns accuracy, calibration and tables of classes and of mistakes.

    Returns:
      "data", "step", "examples" (their number), "accuracy" (None without examples) and
      "accuracy_interval", "grouped" (whether intervals are by groups), "names" (of the classes),
      "classes" (see `statistics.per_class`, with intervals; at most `CLASSES`), "top5_tells"
      (whether top-5 accuracy is meaningful: there are more than five classes), "bins" and "ece"
      (see `scores.calibration`), "pairs" (see `statistics.worst_pairs`).
    """
    matrix = _matrix(found)
    rows = statistics.per_class(matrix, found.labels, found.in_top5)
    groups = found.columns.get(per_example.GROUP)
    apart = None if groups is None else groups.tolist()
    if len(rows) <= CLASSES:
        draws = label_scores.samples(len(rows), len(found.labels))
        margins = intervals.of_classes(found.labels, found.classes[:, 0], len(rows), apart, draws)
        for key, of_classes in margins.items():
            for row, margin in zip(rows, of_classes, strict=True):
                row[f"{key}_interval"] = bounds(margin)
    (margin,) = intervals.of_means(found.correct, apart)
    if len(rows) > CLASSES:
        rows.sort(key=lambda row: (row["f1"] is None, row["f1"]))
    bins, error = calibration(found.probabilities[:, 0], found.correct)
    return {
        "data": found.data,
        "step": found.step,
        "examples": len(found.labels),
        "accuracy": float(found.correct.mean()) if len(found.labels) else None,
        "accuracy_interval": bounds(margin),
        "grouped": apart is not None,
        "names": found.class_names.tolist(),
        "classes": rows[:CLASSES],
        "top5_tells": found.classes.shape[1] == 5 and len(found.class_names) > 5,
        "bins": bins,
        "ece": error,
        "pairs": statistics.worst_pairs(matrix, PAIRS),
    }


def confusion(found: Predictions) -> dict[str, Any]:
    """Returns the confusion matrix for a table or, with many classes, for a zoomable picture.

    With more than `PICTURE` classes there is neither.

    Returns:
      {"rows": counts by label and prediction, "shares": the same relative to the label}, or
      {"order": labels so that similar classes are neighbours, "cells": [[label, prediction,
      count], ...], "names": of the classes}, or {}.
    """
    matrix = _matrix(found)
    if matrix.shape[0] > PICTURE:
        return {}
    if matrix.shape[0] <= WHOLE:
        counts = matrix.toarray()
        totals = np.maximum(counts.sum(1, keepdims=True), 1)
        return {"rows": counts.tolist(), "shares": (counts / totals).round(4).tolist()}
    pairs = matrix.tocoo()
    cells = np.stack([pairs.row, pairs.col, pairs.data], axis=1)
    return {
        "order": statistics.cluster_order(matrix).tolist(),
        "cells": cells.tolist(),
        "names": found.class_names.tolist(),
    }


def heat_maps(
    matrices: list[list[list[float | None]]] | None, *, one_scale: bool = False
) -> list[dict[str, Any]]:
    """Returns the heat map of each block.

    Args:
      matrices: by block, source and target, see `feature_reuse`; None in cells without a value.
      one_scale: whether all blocks share one colour scale.

    Returns:
      [{"sources", "targets" (their numbers), "cells": [(source, target, value), ...], "greatest"
      (the largest absolute value, at full colour), "side" (of a cell in pixels)}, ...].
    """
    maps: list[dict[str, Any]] = []
    for matrix in matrices or []:
        sources, targets = len(matrix), len(matrix[0])
        cells = [
            (source, target, value)
            for source, row in enumerate(matrix)
            for target, value in enumerate(row)
            if value is not None
        ]
        greatest = max((abs(value) for *_, value in cells), default=0) or 1.0
        side = max(5, min(36, math.floor(380 / max(sources, targets))))
        maps.append(
            {
                "sources": sources,
                "targets": targets,
                "cells": cells,
                "greatest": greatest,
                "side": side,
            }
        )
    if one_scale and maps:
        greatest = max(m["greatest"] for m in maps)
        maps = [{**m, "greatest": greatest} for m in maps]
    return maps


def duration(seconds: float) -> str:
    """Returns a duration as text: "2 h 05 min" or "3 min 20 s"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _matrix(found: Predictions) -> sparse.csr_array:
    """Returns the confusion matrix: counts by label and prediction."""
    return statistics.confusion(found.labels, found.classes[:, 0], len(found.class_names))
