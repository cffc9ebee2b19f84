"""report.html: a self-contained page without external links, made from the files of runs."""

import dataclasses
import functools
import itertools
import logging
import operator
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe

from densenet_jax import atomic_files, terminal
from densenet_jax.report import curves, run_files
from densenet_jax.report.analysis import finite
from densenet_jax.report.page_data import findings
from densenet_jax.report.run_files import ReportError, Run

logger = logging.getLogger(__name__)
PAGE = pathlib.Path(__file__).parent / "page"
COMPARISON = "comparison.html"
SCRIPTS = ("page.js", "plot.js", "curves.js")
SCRIPTS_OF = {  # by task
    "classification": ("confusion.js", "calibration.js"),
    "multilabel": ("calibration.js", "labels.js"),
    "regression": ("numbers.js",),
}
REFRESH_SECONDS = 30
Workdir = str | os.PathLike[str]


def write_report(
    workdirs: Workdir | Sequence[Workdir],
    path: Workdir | None = None,
    *,
    live: bool = False,
) -> pathlib.Path:
    """Writes the page of a run, or a page that compares several runs; reads files only.

    Args:
      workdirs: the directory of a run, finished or still running, or a sequence of directories.
      path: of the page; None: report.html in the run's directory or, for several runs,
        comparison.html in their closest common parent directory.
      live: whether the page reloads itself every half minute.

    Returns:
      The page's path.

    Raises:
      ReportError: a directory does not hold a run, or the page cannot be written.
    """
    if isinstance(workdirs, str | os.PathLike):
        directories = [pathlib.Path(workdirs)]
    else:
        directories = [pathlib.Path(workdir) for workdir in workdirs]
    if not directories:
        raise ReportError("There is no run to report on; give the --workdir of a training run.")
    found = [
        run_files.read(d, name) for d, name in zip(directories, names(directories), strict=True)
    ]
    if path is None and len(found) == 1:
        path = directories[0] / "report.html"
    elif path is None:
        path = pathlib.Path(os.path.commonpath([d.resolve().parent for d in directories]))
        path /= COMPARISON
    path = pathlib.Path(path)
    text = render_sound(found, live=live)
    try:
        atomic_files.write(path, text)
    except OSError as e:
        raise ReportError(f"The page {path} cannot be written: {e.strerror}.") from None
    return path


# What a page may leave out: the file, the run's field, and the value that stands for no such file.
OPTIONAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("insight.json", {"insight": {}}),
    ("predictions.npz", {"predictions": None}),
    ("environment.json", {"environments": []}),
)


def render_sound(found: list[Run], *, live: bool = False) -> str:
    """Returns the page of runs; a file that it cannot show is left out with a warning.

    Args:
      found: the runs.
      live: see `render`.

    Raises:
      ReportError: config.json or metrics.jsonl cannot be shown either.
    """
    try:
        return render(found, live=live)
    except Exception as e:  # a file of JSON can be wrong in any way, in any place
        error = e
    for count in range(1, len(OPTIONAL) + 1):
        for files in itertools.combinations(OPTIONAL, count):
            without: dict[str, Any] = functools.reduce(operator.or_, (v for _, v in files))
            try:
                page = render([dataclasses.replace(run, **without) for run in found], live=live)
            except Exception:
                continue
            for name, _ in files:
                logger.warning(
                    "%s is not as this version writes it, and is left out: %s: %s",
                    *(found[0].path / name, type(error).__name__, error),
                )
            return page
    raise ReportError(
        f"The page of {found[0].path} cannot be written: config.json or metrics.jsonl is not as a "
        f"run writes it ({type(error).__name__}: {error}). Restore them from a copy."
    ) from error


def render(found: list[Run], *, live: bool = False) -> str:
    """Returns the page as HTML.

    Args:
      found: the runs; one run gets all sections, several get a comparison.
      live: whether the page reloads itself every half minute.
    """
    return environment(PAGE).get_template("page.html").render(**variables(found, live))


def environment(*folders: pathlib.Path) -> jinja2.Environment:
    """Returns the environment of templates in some folders, with the filters that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,  # names of classes and files can contain HTML
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "count": count, "bytes": in_bytes, "short": short}
    found.filters |= {"decimal": decimal}
    return found


def variables(found: list[Run], live: bool = False) -> dict[str, Any]:
    """Returns the variables of the template page.html, see `render`."""
    about = findings(found[0]) if len(found) == 1 else {}
    scripts = [*SCRIPTS, *SCRIPTS_OF.get(about.get("kind", ""), ())]
    return {
        "title": " and ".join(run.name for run in found),
        "refresh": REFRESH_SECONDS if live else None,
        "now": time.strftime("%Y-%m-%d %H:%M:%S"),
        "style": markupsafe.Markup((PAGE / "style.css").read_text(encoding="utf-8")),
        "scripts": [markupsafe.Markup((PAGE / n).read_text(encoding="utf-8")) for n in scripts],
        "runs": found,
        "metrics": list(
            dict.fromkeys(m for run in found for m in (run.task.best, *run.task.metrics))
        ),
        "charts": finite(curves.charts(found)),
        "config": config_rows(found),
        **about,
    }


def _shown(value: Any) -> Any:
    """Returns what a template shows for a value; text is printable, unless it is our own markup."""
    # A name with letters that are written from right to left would also turn the text around it.
    own = isinstance(value, markupsafe.Markup) or not isinstance(value, str)
    return value if own else terminal.printable(value)


def names(directories: list[pathlib.Path]) -> list[str]:
    """Returns a short, unique name for each directory: its last parts."""
    whole = [d.resolve().parts for d in directories]
    for depth in range(1, max(map(len, whole)) + 1):
        short_names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(short_names)) == len(short_names):
            return short_names
    # The same directory was given twice.
    return [f"{name} ({i})" for i, name in enumerate(short_names, 1)]


def config_rows(found: list[Run]) -> dict[str, Any]:
    """Returns the runs' configurations as rows of tables; values are in the order of the runs.

    Returns:
      {"all": [(key, values), ...], "changed": [(key, default, values), ...] for keys that differ
      from configs/default.py, "different": [(key, values), ...] for keys that differ between the
      runs}.
    """
    configs = [run.config for run in found]
    changed = run_files.differences([run_files.defaults(), *configs])
    keys = dict.fromkeys(key for config in configs for key in config)
    return {
        "all": [(key, [config.get(key, run_files.ABSENT) for config in configs]) for key in keys],
        "changed": [(key, values[0], values[1:]) for key, values in changed],
        "different": run_files.differences(configs),
    }


def percent(value: float | None, digits: int = 2, margin: Sequence[float] | None = None) -> str:
    """Returns a share from 0 to 1 as a percentage, with its interval: "93.1% (90.2–95.4)"."""
    if value is None:
        return run_files.ABSENT
    ends = "–".join(f"{100 * end:.{digits}f}" for end in margin or ())
    return f"{value:.{digits}%} ({ends})" if ends else f"{value:.{digits}%}"


def decimal(value: float | None, margin: Sequence[float] | None = None, digits: int = 3) -> str:
    """Returns a number and its interval, "0.947 (0.931–0.960)".

    Args:
      value: None: undefined.
      margin: [low, high]; None: there is no interval.
      digits: number of digits after the point; 0: as many as make four digits in all.
    """
    if value is None:
        return run_files.ABSENT
    own, *ends = (f"{v:.{digits}f}" if digits else f"{v:,.4g}" for v in (value, *(margin or ())))
    between = " to " if any(end.startswith("-") for end in ends) else "–"
    return f"{own} ({between.join(ends)})" if ends else own


def count(value: float | None) -> str:
    """Returns a number with separators, or, from ten million on, with M, G or T: "33.34 M"."""
    if value is None:
        return run_files.ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e7, "M")):
        if value >= limit:
            return f"{value / (1e6 if unit == 'M' else limit):.2f} {unit}"
    return f"{value:,.0f}"


def in_bytes(value: float) -> str:
    """Returns a number of bytes with a binary unit: "3.0 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def short(value: Any) -> str:
    """Returns a configuration's value or a number as text for the page."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(short(v) for v in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'
