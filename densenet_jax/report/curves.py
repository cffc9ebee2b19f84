"""A run's metrics as charts: what to draw, thinned to what a screen can show."""

from typing import Any

import numpy as np

from densenet_jax.report.run_files import Run, is_number

POINTS = 500  # of a curve
NOT_CURVES = ("step", "epoch", "seconds", "examples")
# key -> title, unit, whether it is a share, whether its axis may be logarithmic.
KNOWN = {
    "loss": ("Loss", "", False, True),
    "learning_rate": ("Learning rate", "", False, True),
    "images_per_second": ("Throughput", "images/s", False, False),
    "data_wait": ("Waiting for data", "", True, False),
}


def charts(runs: list[Run]) -> list[dict[str, Any]]:
    """Returns a chart for each metric that any of the runs has.

    Each is {"key", "title", "unit", "percent", "log", "series"}, each series {"name", "run",
    "split", "x" (epochs), "step", "y"}.
    """
    measured = {
        metric.key: (metric.title.capitalize(), "", metric.percent, False)
        for run in runs
        for metric in run.task.measured
    }
    known = {"loss": KNOWN["loss"], **measured, **KNOWN}
    keys = dict.fromkeys(known)
    for run in runs:
        for record in run.records:
            keys.update(dict.fromkeys(k for k, v in record.items() if is_number(v)))
    found = []
    for key in keys:
        if key in NOT_CURVES:
            continue
        series = [
            {"name": run.name, "run": i, "split": split, **curve(run.of(split), key)}
            for i, run in enumerate(runs)
            for split in ("train", "eval")
        ]
        series = [s for s in series if s["y"]]
        flat = all(value == 0 for s in series for value in s["y"])
        if not series or (flat and key not in known):
            continue
        title, unit, percent, log = known.get(key, (key.replace("_", " "), "", False, False))
        found.append(
            {
                "key": key,
                "title": title,
                "unit": unit,
                "percent": percent,
                "log": log,
                "series": series,
            }
        )
    return found


def curve(records: list[dict[str, Any]], key: str, points: int = POINTS) -> dict[str, list]:
    """Returns x (epochs), step and y of a metric, means of neighbours where there are too many."""
    sound = [r for r in records if is_number(r.get(key))]
    rows = np.array([[r.get("epoch") or 0, r["step"], r[key]] for r in sound], float)
    if not len(rows):
        return {"x": [], "step": [], "y": []}
    groups = np.array_split(rows, points) if len(rows) > points else rows[:, None]
    x, step, y = np.array([group.mean(0) for group in groups]).T
    return {"x": _short(x), "step": [round(s) for s in step], "y": _short(y)}


def _short(values: np.ndarray) -> list[float]:
    """Five digits are more than anyone sees, and halve the page."""
    return [float(f"{value:.5g}") for value in values]
