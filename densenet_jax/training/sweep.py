"""A sweep: one run after another over a grid of values, each in a directory of its own.

Started again it goes on: a run that has finished ends at once, one that was stopped resumes.
"""

import ast
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from densenet_jax.tasks.task import Task
from densenet_jax.training import checks
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.loop import train_and_evaluate
from densenet_jax.training.nonfinite import NonFiniteError
from densenet_jax.training.rundir import metrics_log
from densenet_jax.training.rundir.loggers import Listener
from densenet_jax.training.settings import build_model, make_task

MAX_RUNS = 1000
_KEY = re.compile(r"(?:^|(?<=[\])]))[\s;,]*([A-Za-z_][\w.]*)\s*=\s*")


class Run(NamedTuple):
    """A point of the grid."""

    values: dict[str, Any]
    config: ConfigDict
    workdir: pathlib.Path


def parse(text: str) -> dict[str, list]:
    """Returns {key: values} of 'optimizer.learning_rate=[0.05, 0.1] seed=[0, 1]'.

    Values are Python literals; nothing is evaluated.

    Raises:
      ConfigError: it is written in another way.
    """
    pieces = _KEY.split(text.strip())
    grid: dict[str, list] = {}
    for key, values in zip(pieces[1::2], pieces[2::2], strict=True):
        try:
            listed = ast.literal_eval(values.strip(" ;,"))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            listed = None
        if not isinstance(listed, list | tuple) or not listed or key in grid:
            raise ConfigError(
                f"--sweep: {key}={values.strip()} must be a list of values, once for each key, "
                f"such as {key}=[1, 2]; texts in quotes."
            )
        grid[key] = list(listed)
    if pieces[0].strip() or not grid:
        raise ConfigError(
            f"--sweep={text!r} must name keys of the configuration and their values: "
            "--sweep='optimizer.learning_rate=[0.05,0.1] seed=[0,1]'."
        )
    return grid


def plan(config: ConfigDict, grid: dict[str, list], workdir: str) -> list[Run]:
    """Returns the runs of a grid, the last key changing fastest; every value has been checked.

    Raises:
      ConfigError: a key that does not exist, a value that does not fit, or too many runs.
    """
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MAX_RUNS:
        raise ConfigError(f"--sweep asks for {count} runs; {MAX_RUNS} are the most.")
    short = [key.rpartition(".")[2] for key in grid]
    names = dict(zip(grid, short if len(set(short)) == len(short) else grid, strict=True))
    runs = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        point = config.copy_and_resolve_references()
        for key, value in values.items():
            try:
                point.update_from_flattened_dict({key: value})
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                reason = str(e.args[0] if e.args else e).splitlines()[0]
                raise ConfigError(f"--sweep: config.{key}={value!r}: {reason}") from None
        checks.check(point)
        build_model(point)
        folder = ",".join(f"{names[key]}={_file_name(value)}" for key, value in values.items())
        runs.append(Run(values, point, pathlib.Path(workdir) / folder))
    if len({run.workdir for run in runs}) < len(runs):
        raise ConfigError("--sweep has the same values twice, or values too long to tell apart.")
    return runs


def _file_name(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")[:60] or "_"


def run(one: Run, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Makes one of the runs, or the rest of it.

    Args:
      listeners: as of `train_and_evaluate`.

    Returns:
      {"workdir", "values", the task's metrics, "step", "seconds"}: the metrics and the step of the
      best evaluation, whose checkpoint the run is known by, and the seconds up to its last step.
      For a run whose numbers stay bad, which does not end the sweep, the best metric is None, and
      "error" says why.
      Only in the first process of a job, which has written what is read here.
    """
    row, task = {"workdir": str(one.workdir), "values": one.values}, make_task(one.config)
    try:
        train_and_evaluate(one.config, str(one.workdir), listeners)
    except NonFiniteError as e:
        return row | {task.best.key: None, "error": str(e)}
    if jax.process_index() > 0:
        return row
    records = metrics_log.read(one.workdir / "metrics.jsonl")
    best = max((r for r in records if r["split"] == "eval"), key=task.best.score)
    scores = {name: best[name] for name in (*(m.key for m in task.metrics), "step")}
    return row | scores | {"seconds": records[-1]["seconds"]}


def write(rows: list[dict[str, Any]], workdir: str) -> None:
    """Writes the rows of the runs so far to sweep.json."""
    path = pathlib.Path(workdir) / "sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def sweep(
    config: ConfigDict,
    workdir: str,
    text: str,
    listeners: Callable[[str], Sequence[Listener]] = lambda workdir: (),
) -> None:
    """Trains over the grid that a text describes, and prints the table.

    Args:
      listeners: returns those of the run in a directory.
    """
    runs, rows = plan(config, parse(text), workdir), []
    first = jax.process_index() == 0  # of the processes of the job; it alone writes
    for number, one in enumerate(runs, 1):
        if first:
            print(f"run {number} of {len(runs)}: {one.workdir.name}", flush=True)
        rows.append(run(one, listeners(str(one.workdir))))
        if first:
            write(rows, workdir)
    if first:
        Console().print(table(rows, make_task(config)))
        print(f"written: {workdir}/sweep.json")


def table(rows: list[dict[str, Any]], task: Task) -> Table:
    """Returns rows of `run` as a table; the best is bold."""
    titles = [metric.title for metric in task.metrics]
    shown = Table(*rows[0]["values"], *titles, "step", "seconds", box=None)
    best = max(map(task.best.score, rows))
    for row in rows:
        cells = ["diverged"] + ["-"] * (len(titles) + 1)
        known = task.best.value(row) is not None
        if known:
            cells = [metric.show(row) for metric in task.metrics]
            cells += [str(row["step"]), f"{row['seconds']:.0f}"]
        bold = known and task.best.score(row) == best
        shown.add_row(*map(str, row["values"].values()), *cells, style="bold" if bold else None)
    return shown
