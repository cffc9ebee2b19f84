"""Examines a folder of images or a table: labels, splits, groups, sizes and channels."""

import dataclasses
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable

import numpy as np

from densenet_jax.data.reading import decoding, examples
from densenet_jax.data.reading.limits import ImageError, KindError
from densenet_jax.data.sources import by_name, splits, table_files, table_labels
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.data.sources.tables import Columns
from densenet_jax.data.statistics import Statistics, measure

HOLDOUT, FEW_HOLDOUT = 0.1, 0.2  # share of the validation split: of many images, and of few
FEW = 1000
LOOKED_AT = 50  # images whose size is read
MEASURED = 300  # images whose mean and deviation are measured
MANY = 50  # distinct numbers, above which a column is a number to predict and not a class
IMAGE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|npy|dcm)$", re.IGNORECASE)
# Names that columns of paths, classes, groups and splits usually have, in any case.
PATHS = re.compile(r"path|file|image|img|id$")
CLASSES = re.compile(r"^(label|class|target|diagnosis|dx|category|y)|labels?$|class$")
GROUPS = re.compile(r"patient|subject|person|group|case|lesion|slide|participant")
SPLITS = re.compile(r"split|subset|partition|^set$")
MARKS = {"0", "1", "-1", "0.0", "1.0", "-1.0", ""}  # of labels that have a column each


@dataclasses.dataclass(frozen=True)
class FoundData:
    """What was found.

    Attributes:
      path: of the folder or table, absolute.
      table: whether it is a table.
      columns: which columns of the table are what.
      holdout: share of the data that is the validation split, if they have no splits.
      train, validation: the splits, as a run reads them.
      channels: of the images.
      sizes: median height and width, in pixels.
      counts: number of training examples of each class or label; () for numbers to predict.
      statistics: mean, deviation and range of the training images.
    """

    path: pathlib.Path
    table: bool
    columns: Columns
    holdout: float
    train: Source
    validation: Source
    channels: int
    sizes: tuple[int, int]
    counts: tuple[int, ...]
    statistics: Statistics

    @property
    def imbalance(self) -> float:
        """How many times more examples the most frequent class has than the rarest."""
        return max(self.counts, default=1) / max(1, min(self.counts, default=1))


def look(path: str) -> FoundData:
    """Returns what lies in a folder of images or a table.

    Args:
      path: of the folder (SPLIT/CLASS/* or CLASS/*), or of a .csv, .tsv or .parquet file.

    Raises:
      DataError: neither is there, or the columns of the table cannot be told apart; the message
        names them. What keeps a run from reading the data is raised as in a run.
    """
    found = pathlib.Path(path).expanduser().absolute()
    table = found.is_file()
    if table:
        columns, task = _columns(table_files.read(found, _all_columns(found)))
    else:
        columns, task = Columns(), "classification"
    name = "table" if table else "folder"

    def load(split: str, holdout: float) -> Source:
        return by_name.load(name, split, str(found), holdout, task=task, columns=columns)

    holdout, train = HOLDOUT, load("train", HOLDOUT)
    if len(train) < FEW:
        holdout, train = FEW_HOLDOUT, load("train", FEW_HOLDOUT)
    validation = load("validation", holdout)
    channels, sizes = _pictures(train)
    labels = np.asarray(getattr(train.examples, "labels", ()))
    counts: Iterable[int] = ()
    if task == "classification":
        counts = np.bincount(labels, minlength=train.num_classes).tolist()
    elif task == "multilabel":
        counts = (labels == 1).sum(axis=0).tolist()
    measured = measure(train, image_size=64, channels=channels, images=MEASURED)
    return FoundData(
        found, table, columns, holdout, train, validation, channels, sizes, tuple(counts), measured
    )


def _all_columns(path: pathlib.Path) -> dict[str, str]:
    """Returns the argument `needed` of `table_files.read` that keeps every column of a file."""
    return dict.fromkeys(table_files.read(path, {}, rows=1).header, "data.label_columns")


def _columns(table: table_files.Table) -> tuple[Columns, str]:
    """Returns which columns of a table are what, and the task of its labels."""
    columns = table.columns
    path = _first(columns, lambda name, c: all(IMAGE.search(v) for v in c.values if v))
    path = path or _first(
        columns, lambda name, c: bool(PATHS.search(name)) and len(c.values) > len(c) // 2
    )
    if path is None:
        raise DataError(_unclear(table, "paths of images", "data.path_column"))
    rest = {name: column for name, column in columns.items() if name != path}
    split = _first(rest, lambda name, c: bool(SPLITS.search(name)) and _names_splits(c))
    group = _first(rest, lambda name, c: bool(GROUPS.search(name)) and "" not in c.values)
    rest = {name: column for name, column in rest.items() if name not in (split, group)}
    labels, task = _labels(table, rest)
    return Columns(path, labels, split_column=split or "", group_column=group or ""), task


def _labels(table: table_files.Table, rest: dict[str, Column]) -> tuple[tuple[str, ...], str]:
    """Returns the columns of labels and their task."""
    marks = tuple(name for name, c in rest.items() if "1" in _whole(c) and set(c.values) <= MARKS)
    if len(marks) > 1:
        return marks, "multilabel"
    named = [name for name in rest if CLASSES.search(name.lower())] or list(marks) or list(rest)
    if len(named) != 1:
        raise DataError(_unclear(table, "labels", "data.label_columns"))
    values = [value for value in rest[named[0]].values if value]
    if any("|" in value for value in values):
        return (named[0],), "multilabel"
    if len(values) > MANY and all(map(table_labels.is_number, values)):
        return (named[0],), "regression"
    return (named[0],), "classification"


def _whole(column: Column) -> set[str]:
    return {value.removesuffix(".0") for value in column.values}


def _first(columns: dict[str, Column], suits: Callable[[str, Column], bool]) -> str | None:
    """Returns the first column for whose name, in small letters, and cells `suits` is true."""
    return next((name for name, c in columns.items() if suits(name.lower(), c)), None)


def _names_splits(column: Column) -> bool:
    names = [value.lower() for value in column.values if value]
    return all(splits.find(wanted, names, "")[0] for wanted in ("train", "validation"))


def _unclear(table: table_files.Table, what: str, option: str) -> str:
    return (
        f"{table.name}: which column has the {what} is not clear; its columns are "
        f"{', '.join(table.header)}. Use --config=configs/finetune.py:WEIGHTS,table and name it "
        f"with --config.{option}."
    )


def _pictures(source: Source) -> tuple[int, tuple[int, int]]:
    """Returns the number of channels and the median height and width of a split's images.

    Raises:
      DataError: no image can be read.
    """
    sizes, channels = [], 0
    for index in np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).round().astype(int):
        try:
            image = examples.read(source, int(index))["image"]
            sizes.append(decoding.dimensions(image))
            channels = channels or _channels(image)
        except ImageError:  # the run counts and names it
            continue
    if not channels:
        raise DataError(f"No image of {source.name} can be read; check the files.")
    height, width = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return channels, (height, width)


def _channels(image: bytes | np.ndarray) -> int:
    """Returns 3 for pictures, which can all be read as colours, else the channels of the array."""
    try:
        decoding.decode(image, 3)
        return 3
    except KindError as e:
        return e.channels
