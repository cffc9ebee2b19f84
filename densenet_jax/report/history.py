"""The metrics of a run, in memory that does not grow with the length of the run."""

import array
import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from densenet_jax.tasks.task import Metric
from densenet_jax.training.rundir import bounded_files, metrics_log

ROWS = 20_000  # records; longer files are read in this number of blocks, each as its mean
METRICS = 500  # largest number of metrics, those of both splits together
PLACE = ("step", "epoch", "seconds")


@dataclasses.dataclass(frozen=True)
class History:
    """The content of metrics.jsonl, as far as a report shows it.

    Attributes:
      series: {(split, metric): rows of epoch, step and value, [N, 3]}, in the order of the file.
      last: the last record; None without any.
      best: the best evaluation's record; None without one.
      seconds: duration of the run, summed over all its starts.
    """

    series: dict[tuple[str, str], np.ndarray]
    last: dict[str, Any] | None
    best: dict[str, Any] | None
    seconds: float


def read(path: pathlib.Path, best: Metric) -> History:
    """Returns the history in a metrics file, of any length.

    Args:
      path: of metrics.jsonl; without it the history is empty.
      best: the metric that chooses the best evaluation.
    """
    block = math.ceil(_lines(path) / ROWS) or 1
    return summarize(metrics_log.records(path), best, block)


def summarize(records: Iterable[dict[str, Any]], best: Metric, block: int = 1) -> History:
    """Returns the history of records.

    Args:
      records: of metrics.jsonl.
      best: the metric that chooses the best evaluation.
      block: number of successive records that are replaced by their means.
    """
    series: dict[tuple[str, str], array.array] = {}
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0] * 4)
    last, chosen = None, None
    total, before = 0.0, 0.0

    def end_block() -> None:
        for key, (epoch, step, value, count) in sums.items():
            if key in series or len(series) < METRICS:
                row = (epoch / count, step / count, value / count)
                series.setdefault(key, array.array("d")).extend(row)
        sums.clear()

    for number, record in enumerate(records, 1):
        split = record.get("split")
        if split not in ("train", "eval"):
            continue
        last = record
        if split == "eval" and best.value(record) is not None:
            # Of equal ones the later counts, as for checkpoints.
            chosen = record if chosen is None else max(record, chosen, key=best.score)
        seconds = record.get("seconds")
        if is_number(seconds) and 0 <= seconds < math.inf:
            # After a resume, the clock starts again at 0.
            total += seconds - before if seconds >= before else seconds
            before = seconds
        epoch, step = record.get("epoch"), record["step"]
        epoch = epoch if is_number(epoch) else 0.0
        for name, value in record.items():
            if name not in PLACE and is_number(value):
                row = sums[split, name]
                row[0] += epoch
                row[1] += step
                row[2] += value
                row[3] += 1
        if number % block == 0:
            end_block()
    end_block()
    rows = {key: np.frombuffer(values).reshape(-1, 3) for key, values in series.items()}
    return History(rows, last, chosen, total)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether a value from JSON is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(path: pathlib.Path) -> int:
    """Returns the number of lines of a file; 0 if it cannot be read."""
    try:
        with bounded_files.open_file(path) as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))
    except OSError:
        return 0
