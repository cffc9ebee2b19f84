"""Figures of runs for papers, as SVG and PDF: curves, ROC, confusion, feature reuse, growth.

They are drawn from the files of the runs, as the page is; figures without data are named.
"""

import io
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from densenet_jax import atomic_files, terminal
from densenet_jax.report import curves, page, run_files, statistics
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.predictions import Predictions
from densenet_jax.report.run_files import ReportError, Run
from densenet_jax.scores import ranking
from densenet_jax.training.rundir import bounded_files

PANELS = 12  # largest number of labels or classes with a ROC curve
NUMBERS = 15  # largest number of classes for which the cells of a confusion matrix have numbers
NAMES = 40  # and for which the classes have names
WIDTH = 3.3  # inches of a panel: a column of most papers
# Colours that colour-blind people can tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {  # Matplotlib's settings
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters in PDF, as publishers want
    "svg.hashsalt": "densenet_jax",  # the same file every time
    "text.parse_math": False,  # a dollar in a name is a dollar
}


def write(
    workdirs: Sequence[str | pathlib.Path], folder: pathlib.Path
) -> tuple[list[pathlib.Path], list[str]]:
    """Writes the figures of runs; returns their paths, and what was left out and why.

    Args:
      workdirs: the runs' directories.
      folder: where to write NAME.svg and NAME.pdf.

    Raises:
      ReportError: a directory does not hold a run, or the folder cannot be written.
    """
    directories = [pathlib.Path(workdir) for workdir in workdirs]
    names = [terminal.printable(name) for name in page.names(directories)]
    runs = [run_files.read(d, name) for d, name in zip(directories, names, strict=True)]
    return draw(runs, folder)


def draw(runs: list[Run], folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Does what `write` does for runs that have been read."""
    import matplotlib  # takes a third of a second

    paths, left_out = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            for name, figure in _figures(runs):
                if isinstance(figure, str):
                    left_out.append(f"{name}: {figure}")
                    continue
                for suffix in ("svg", "pdf"):
                    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.{suffix}"
                    file, dated = io.BytesIO(), "Date" if suffix == "svg" else "CreationDate"
                    figure.savefig(file, format=suffix, metadata={dated: None}, bbox_inches="tight")
                    atomic_files.write(path, file.getvalue())
                    paths.append(path)
    except OSError as e:
        raise ReportError(f"--figures={folder} cannot be written: {e.strerror}.") from None
    return paths, left_out


def _figures(runs: list[Run]) -> Iterator[tuple[str, Any]]:
    """Yields (name, figure), or (name, why there is none)."""
    wanted = dict.fromkeys(
        m.key for run in runs for m in (*run.task.measured, run.task.metrics[-1])
    )
    for chart in curves.charts(runs):
        if chart["key"] in wanted:
            yield f"curve-{chart['key']}", _curve(chart, len(runs))
    yield "roc", _roc(runs)
    for run in runs:
        suffix = f"-{run.name}" if len(runs) > 1 else ""
        if run.task.name == "classification":
            yield f"confusion{suffix}", _confusion(run)
        yield f"reuse{suffix}", _reuse(run)
    yield "growth", _growth(runs)


def _panels(count: int, columns: int = 4, height: float = WIDTH) -> tuple[Any, list[Any]]:
    """Returns a figure with `count` panels, and its axes."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _curve(chart: dict[str, Any], runs: int) -> Any:
    """Returns a metric over epochs, of training (thin) and evaluation, of all runs."""
    figure, (axes,) = _panels(1, height=2.4)
    for series in chart["series"]:
        evaluation = series["split"] == "eval"
        label = (
            series["name"] if runs > 1 else {"eval": "evaluation"}.get(series["split"], "training")
        )
        axes.plot(
            *(series["x"], series["y"]),
            color=_colour(series["run"] if runs > 1 else int(evaluation)),
            linewidth=1.4 if evaluation else 0.6,
            marker="o" if evaluation and len(series["x"]) < 40 else None,
            markersize=2.5,
            label=label if evaluation or runs == 1 else None,
        )
    axes.set(xlabel="epoch", ylabel=chart["title"])
    if chart["percent"]:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend()
    return figure


def _roc(runs: list[Run]) -> Any:
    """Returns the ROC curves of every label, or of each class against all others, of all runs."""
    if runs[0].task.name == "regression":
        return "numbers have no ROC curve."
    found = [_answers(run) for run in runs]
    lacking = [run.name for run, own in zip(runs, found, strict=True) if own is None]
    if lacking:
        return f"{', '.join(lacking)}: there are no answers of the split; run evaluate first."
    names = found[0][0] if found[0] else []
    if any(own is not None and own[0] != names for own in found):
        return "the runs have different classes or labels."
    one = len(names) == 2 and runs[0].task.name == "classification"  # its other class is a mirror
    shown = range(1 if one else 0, len(names))
    figure, panels = _panels(min(len(shown), PANELS))
    for axes, i in zip(panels, shown, strict=False):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
        for number, (run, own) in enumerate(zip(runs, found, strict=True)):
            assert own is not None
            _, p, targets = own
            curve = ranking.curves(p[:, i], targets[:, i])["roc"]
            if curve is not None:
                area = ranking.by_label(p[:, i], targets[:, i])["auroc"][0]
                label = f"{run.name}: {area:.3f}" if len(runs) > 1 else f"AUROC {area:.3f}"
                axes.plot(*np.array(curve).T, color=_colour(number), linewidth=1.4, label=label)
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", title=terminal.printable(names[i]))
        axes.set_box_aspect(1)
        if len(axes.lines) > 1:
            axes.legend(loc="lower right")
    if len(shown) > PANELS:
        figure.supxlabel(f"the first {PANELS} of {len(shown)}")
    return figure


def _answers(run: Run) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Returns names, probabilities [N, L] and targets [N, L] of a run; None if there are none."""
    if isinstance(run.predictions, Estimates):
        found = run.predictions
        return None if found.not_finite else (found.names, found.values, found.labels)
    try:
        stored = bounded_files.read_npz(run.path / "evaluation.npz")
        p, labels, names = (stored[key] for key in ("probabilities", "label", "class_names"))
        targets = labels[:, None] == np.arange(len(names))
        fits = p.shape == targets.shape and names.dtype.kind == "U" and labels.dtype.kind in "iu"
        return (names.tolist(), p, targets) if fits and np.isfinite(p).all() else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _confusion(run: Run) -> Any:
    """Returns the confusion matrix of a run as shares of each label's examples."""
    found = run.predictions
    if not isinstance(found, Predictions):
        return "there are no stored predictions; write the run's own report first."
    count = len(found.class_names)
    if count > 1000:
        return f"there are too many classes ({count:,}) for a picture."
    counts = statistics.confusion(found.labels, found.classes[:, 0], count)
    order = statistics.cluster_order(counts) if count > NAMES else np.arange(count)
    table = counts.toarray()[np.ix_(order, order)]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.3 * count, WIDTH, 7))
    figure, (axes,) = _panels(1)
    figure.set_size_inches(side + 0.6, side)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the label's examples")
    axes.set(xlabel="prediction", ylabel="label")
    if count <= NAMES:
        names = [terminal.printable(name) for name in found.class_names.tolist()]
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
    if count <= NUMBERS:
        for (i, k), n in np.ndenumerate(table):
            colour = "white" if shares[i, k] > 0.5 else "black"
            axes.text(k, i, f"{n:,}", ha="center", va="center", color=colour, fontsize=7)
    return figure


def _reuse(run: Run) -> Any:
    """Returns figure 5 of the paper: how much each layer uses the earlier ones."""
    blocks = run.insight.get("reuse")
    if not blocks:
        return (
            "there is no analysis of feature reuse; write the run's report first (of a DenseNet)."
        )
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(len(blocks), height=WIDTH * 0.9)
    for number, (axes, block) in enumerate(zip(panels, blocks, strict=True), 1):
        matrix = np.array(block, float)  # None becomes NaN, which stays white
        edges = (0.5, matrix.shape[1] + 0.5, matrix.shape[0] - 0.5, -0.5)
        picture = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1, extent=edges)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="target layer", ylabel="source layer (0: input)", title=f"block {number}")
    figure.colorbar(picture, ax=panels, shrink=0.8, label="mean |weight|, relative")
    return figure


def _growth(runs: list[Run]) -> Any:
    """Returns how maps, parameters and multiply-adds grow from stage to stage."""
    models = [(i, run) for i, run in enumerate(runs) if run.insight.get("model")]
    if not models:
        return "there is no summary of a model; write the run's own report first."
    from matplotlib.ticker import EngFormatter, NullFormatter

    several = len(models) > 1
    figure, panels = _panels(4 if several else 3, height=2.6)
    for number, run in models:
        stages = run.insight["model"]["stages"]
        shaped = [stage for stage in stages if len(stage["shape"] or ()) == 3]
        columns = (
            ("feature maps", shaped, [stage["shape"][-1] for stage in shaped]),
            ("parameters, sum", stages, np.cumsum([stage["parameters"] for stage in stages])),
            ("multiply-adds, sum", stages, np.cumsum([stage["macs"] for stage in stages])),
        )
        for axes, (title, of, values) in zip(panels, columns, strict=False):
            axes.plot(values, color=_colour(number), marker="o", markersize=2.5, label=run.name)
            axes.set_xticks(range(len(of)), [s["name"] for s in of], rotation=45, ha="right")
            axes.set(ylabel=title, ylim=(0, None))
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        best = run.task.best.value(run.history.best or {})
        if several and best is not None:
            panels[3].plot(run.insight["model"]["parameters"], best, "o", color=_colour(number))
            panels[3].set(xscale="log", xlabel="parameters", ylabel=f"best {run.task.best.title}")
    if several:
        panels[0].legend()
        panels[3].xaxis.set_major_formatter(EngFormatter(sep=""))
        panels[3].xaxis.set_minor_formatter(NullFormatter())
    return figure
