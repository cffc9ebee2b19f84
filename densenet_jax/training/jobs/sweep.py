"""A sweep: one run for each combination of values, one after another, each in its own directory.

A sweep that is started again continues: finished runs end at once, and a stopped run resumes.
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
from rich.table import Table

from densenet_jax import atomic_files
from densenet_jax.tasks.task import Task
from densenet_jax.terminal import Console, say
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
    """One run of a sweep.

    Attributes:
      values: the swept keys and this run's values, {"optimizer.learning_rate": 0.1, ...}.
      config: the configuration with these values.
      workdir: the run's directory.
    """

    values: dict[str, Any]
    config: ConfigDict
    workdir: pathlib.Path


def parse(text: str) -> dict[str, list[Any]]:
    """Returns the grid {key: values} that the text of --sweep describes.

    Args:
      text: for example 'optimizer.learning_rate=[0.05, 0.1] seed=[0, 1]'.  The values are Python
        literals, and are never executed.

    Raises:
      ConfigError: the text has another form.
    """
    pieces = _KEY.split(text.strip())
    grid: dict[str, list[Any]] = {}
    for key, values in zip(pieces[1::2], pieces[2::2], strict=True):
        try:
            listed = ast.literal_eval(values.strip(" ;,"))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            listed = None
        if not isinstance(listed, list | tuple) or not listed or key in grid:
            raise ConfigError(
                f"--sweep: {key}={values.strip()} must be a list of values such as {key}=[1, 2], "
                "with strings in quotes, and each key may occur only once."
            )
        grid[key] = list(listed)
    if pieces[0].strip() or not grid:
        raise ConfigError(
            f"--sweep={text!r} must list keys of the configuration with their values, for example "
            "--sweep='optimizer.learning_rate=[0.05,0.1] seed=[0,1]'."
        )
    return grid


def plan(config: ConfigDict, grid: dict[str, list[Any]], workdir: str) -> list[Run]:
    """Returns the runs of a grid; the last key changes fastest.  All values have been checked.

    Args:
      config: the configuration that the runs share.
      grid: {key: values}, as `parse` returns it.
      workdir: the sweep's directory, which will hold those of its runs.

    Raises:
      ConfigError: a key does not exist, a value cannot be used, or there are too many runs.
    """
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MAX_RUNS:
        raise ConfigError(f"--sweep asks for {count} runs; the maximum is {MAX_RUNS}.")
    short = [key.rpartition(".")[2] for key in grid]
    names = dict(zip(grid, short if len(set(short)) == len(short) else grid, strict=True))
    runs = []
    for combination in itertools.product(*grid.values()):
        point_values = dict(zip(grid, combination, strict=True))
        point = config.copy_and_resolve_references()
        for key, value in point_values.items():
            try:
                point.update_from_flattened_dict({key: value})
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                reason = str(e.args[0] if e.args else e).splitlines()[0]
                raise ConfigError(f"--sweep: config.{key}={value!r}: {reason}") from None
        checks.check(point)
        build_model(point)
        folder = ",".join(f"{names[key]}={_file_name(v)}" for key, v in point_values.items())
        runs.append(Run(point_values, point, pathlib.Path(workdir) / folder))
    if len({run.workdir for run in runs}) < len(runs):
        raise ConfigError(
            "--sweep has the same values twice, or values whose first 60 characters are the same; "
            "each run needs another directory name."
        )
    return runs


def _file_name(value: Any) -> str:
    """Returns a value as part of a directory's name."""
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")[:60] or "_"


def run(one: Run, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Trains one run of a sweep, or the rest of it if it was stopped earlier.

    Args:
      one: the run.
      listeners: receive the run's records, see `train_and_evaluate`.

    Returns:
      {"workdir", "values", the task's metrics, "step", "seconds"}: metrics and step of the best
      evaluation, and the seconds up to the run's last step.
      A run whose loss or gradients stay non-finite does not end the sweep: its best metric is
      None, and "error" says why.
      In all processes of a job but the first, only {"workdir", "values"}: the rest is read from
      files that the first process has written, and a network file system may show them later.
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
    """Writes the results of the runs so far to sweep.json.

    Args:
      rows: as `run` returns them.
      workdir: the sweep's directory.
    """
    path = pathlib.Path(workdir) / "sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write(path, json.dumps(rows, indent=2) + "\n")


def sweep(
    config: ConfigDict,
    workdir: str,
    text: str,
    listeners: Callable[[str], Sequence[Listener]] = lambda workdir: (),
) -> None:
    """Trains all runs of a grid, writes sweep.json after each, and prints the table.

    Args:
      config: the configuration that the runs share.
      workdir: the sweep's directory.
      text: the grid, see `parse`.
      listeners: maps a run's directory to the listeners of its records.

    Raises:
      ConfigError: see `parse` and `plan`.
    """
    runs = plan(config, parse(text), workdir)
    rows: list[dict[str, Any]] = []
    first = jax.process_index() == 0  # only the first process of a job writes files
    for number, one in enumerate(runs, 1):
        if first:
            say(f"run {number} of {len(runs)}: {one.workdir.name}")
        rows.append(run(one, listeners(str(one.workdir))))
        if first:
            write(rows, workdir)
    if first:
        Console().print(table(rows, make_task(config)))
        say(f"written: {workdir}/sweep.json")


def table(rows: list[dict[str, Any]], task: Task) -> Table:
    """Returns the results of a sweep as a table in which the best run is bold.

    Args:
      rows: as `run` returns them; at least one.
      task: the task of the runs, which knows their metrics.
    """
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
