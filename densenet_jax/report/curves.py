"""The metrics of runs as data for charts, reduced to the number of points a screen can show."""

from typing import Any

import numpy as np

from densenet_jax.report.run_files import Run

POINTS = 500  # largest number of points of a curve
NOT_CURVES = ("examples",)
# {key: (title, unit, whether it is a share, whether its axis can be made logarithmic)}
KNOWN = {
    "loss": ("Loss", "", False, True),
    "learning_rate": ("Learning rate", "", False, True),
    "images_per_second": ("Throughput", "images/s", False, False),
    "data_wait": ("Waiting for data", "", True, False),
}


def charts(runs: list[Run]) -> list[dict[str, Any]]:
    """Returns a chart for each metric of the runs.

    A metric that is neither of the task nor in `KNOWN` gets no chart if it is always 0.

    Returns:
      [{"key", "title", "unit", "percent", "log", "series"}, ...], where "percent" says whether the
      metric is a share, "log" whether the axis can be made logarithmic, and "series" is
      [{"name", "run" (index of the run), "split" ("train" or "eval"), "x" (epochs), "step", "y"},
      ...] with lists of equal length under "x", "step" and "y".
    """
    measured = {
        metric.key: (_capital(metric.title), "", metric.percent, False)
        for run in runs
        for metric in run.task.measured
    }
    known = {"loss": KNOWN["loss"], **measured, **KNOWN}
    keys = dict.fromkeys(known)
    for run in runs:
        keys.update(dict.fromkeys(key for _, key in run.history.series))
    found = []
    for key in keys:
        if key in NOT_CURVES:
            continue
        series: list[dict[str, Any]] = [
            {
                "name": run.name,
                "run": i,
                "split": split,
                **curve(run.history.series.get((split, key))),
            }
            for i, run in enumerate(runs)
            for split in ("train", "eval")
        ]
        series = [s for s in series if s["y"]]
        flat = all(value == 0 for s in series for value in s["y"])
        if not series or (flat and key not in known):
            continue
        title, unit, percent, log = known.get(key, (key.replace("_", " "), "", False, False))
        if key in (*measured, "loss") and any(run.mixes for run in runs):
            title += " (training: of mixed images)"
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


def curve(rows: np.ndarray | None, points: int = POINTS) -> dict[str, list]:
    """Returns a metric's curve, {"x" (epochs), "step", "y"}, with lists of equal length.

    Args:
      rows: of epoch, step and value, [N, 3], see `History.series`; None: no curve.
      points: largest number of points; more are replaced by means of neighbours.
    """
    if rows is None:
        return {"x": [], "step": [], "y": []}
    groups = np.array_split(rows, points) if len(rows) > points else rows[:, None]
    x, step, y = np.array([group.mean(0) for group in groups]).T
    return {"x": _short(x), "step": [round(s) for s in step], "y": _short(y)}


def _short(values: np.ndarray) -> list[float]:
    """Rounds to five digits, which is finer than a chart can show and halves the page's size."""
    return [float(f"{value:.5g}") for value in values]


def _capital(title: str) -> str:
    """Returns a title with a capital first letter; str.capitalize would write "Auroc"."""
    return title[:1].upper() + title[1:]
