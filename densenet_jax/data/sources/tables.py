"""Data sets whose labels are in a table: a .csv, .tsv or .parquet file, or records in Python."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from densenet_jax.data.sources import splits, table_files, table_labels, table_paths
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.data.sources.splits import Division
from densenet_jax.data.sources.table_files import Table
from densenet_jax.data.sources.table_labels import Labels


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table are what; each field is the option `data.NAME`.

    Attributes:
      path_column: of the image files, relative to the table's folder.
      label_columns: of the labels, see `table_labels.interpret`.
      uncertain: what -1 and blank labels mean: "ignore", "zero" or "one".
      split_column: its values name the splits; "": a hash divides the rows.
      group_column: of groups, such as patients, none of which is in two splits; "": none.

    Raises:
      DataError: a column of labels is that of paths.
    """

    path_column: str = "path"
    label_columns: tuple[str, ...] = ("label",)
    uncertain: str = "ignore"
    split_column: str = ""
    group_column: str = ""

    def __post_init__(self) -> None:
        names = self.label_columns
        names = (names,) if isinstance(names, str) else tuple(map(str, names))
        object.__setattr__(self, "label_columns", names)
        if self.path_column in names:
            raise DataError(
                f"data.path_column and data.label_columns both name {self.path_column!r}; name the "
                "column of labels."
            )

    def needed(self) -> dict[str, str]:
        """Returns {name of a column: the option that names it}."""
        return {
            **{name: table_labels.OPTION for name in self.label_columns},
            **({self.group_column: "data.group_column"} if self.group_column else {}),
            **({self.split_column: "data.split_column"} if self.split_column else {}),
            self.path_column: table_paths.OPTION,
        }


DEFAULT, HOLDOUT = Columns(), Division()


def table_source(
    path: str,
    split: str,
    columns: Columns = DEFAULT,
    division: Division = HOLDOUT,
    task: str = "classification",
) -> Source:
    """Returns a split of the images that a file lists.

    Args:
      path: of a .csv, .tsv or .parquet file; `~` is the home directory.
      split: "train", "validation", or a value of the split column.
      columns: which columns are what.
      division: how rows are divided if there is no split column.
      task: what the labels are for: "classification", "multilabel" or "regression".

    Raises:
      DataError: the file, a column, a cell or an image is missing or cannot be used, the labels
        suit another task, a group is in two splits, or the split is empty.
    """
    file = pathlib.Path(path).expanduser()
    if not path or file.suffix.lower() not in table_files.SUFFIXES:
        raise DataError(
            f"data.name is 'table', but data.data_dir is {path!r}; set it to a file that ends in "
            f"{', '.join(table_files.SUFFIXES)}."
        )
    table = table_files.read(file, columns.needed())
    return _source(table, file.parent, split, columns, division, task)


def from_records(
    records: Iterable[Mapping[str, Any]],
    root: str | os.PathLike[str],
    split: str = "train",
    columns: Columns = DEFAULT,
    division: Division = HOLDOUT,
    task: str = "classification",
) -> Source:
    """Returns a split of the images that records list: `table_source` without a file.

    Args:
      records: [{"path": "a.jpg", "label": "cat"}, ...]; cells are text, numbers, booleans, None
        (blank), or lists of labels.
      root: the folder that paths are relative to.
      split: as of `table_source`, like all that follow.
      columns: which keys are what.
      division: how records are divided if there is no split column.
      task: "classification", "multilabel" or "regression".

    Raises:
      DataError: as of `table_source`.
    """
    table = table_files.from_records(records, columns.needed())
    return _source(table, pathlib.Path(root), split, columns, division, task)


def _source(
    table: Table, root: pathlib.Path, split: str, columns: Columns, division: Division, task: str
) -> Source:
    labels = table_labels.interpret(table, columns.label_columns, task, columns.uncertain)
    cells = table.column(columns.path_column, table_paths.OPTION)
    paths, notes = table_paths.locate(table, cells, root)
    groups = split_of = None
    if columns.group_column:
        groups = table.column(columns.group_column, "data.group_column")
        blank = [value.lower() in table_labels.BLANK for value in groups.values]
        if any(blank):
            row = int(groups.rows_of(blank.index(True))[0])
            raise DataError(
                f"{table.row(row)}: the group in the column {columns.group_column!r} is blank"
                f"{f' ({groups[row]})' * bool(groups[row])}; fill it in, or remove the row."
            )
    if columns.split_column:
        if division.folds:
            raise DataError(
                f"data.split_column={columns.split_column!r} and data.folds={division.folds} both "
                "divide the table; remove one of them."
            )
        split_of = table.column(columns.split_column, "data.split_column")
    rows, repeated = _first_rows(table, paths, labels, groups, split_of)
    if len(rows) < len(paths):
        labels = labels._replace(values=labels.values[rows])
        paths = paths.take(rows)
        groups = groups and groups.take(rows)
        split_of = split_of and split_of.take(rows)
    if split_of is not None:
        chosen, more = _named_part(table, split, split_of, groups, labels, columns)
    else:
        keys = paths if groups is None else groups
        chosen, more = splits.rows_of_part(
            split, keys, labels.values, labels.names, division, table.name
        )
    values = labels.values[chosen]
    _check_known(table, values, rows[chosen], columns)
    own = {columns.path_column, *columns.label_columns}
    return Source(
        Files(os.fspath(root), paths.take(chosen), values),
        labels.names,
        f"{table.name} ({split})",
        notes=(*table.notes, *more, *notes, *labels.notes, *repeated),
        task=task,
        groups=groups and groups.take(chosen),
        columns={
            name: column.take(rows[chosen])
            for name, column in table.columns.items()
            if name not in own
        },
    )


def _first_rows(
    table: Table, paths: Column, labels: Labels, *others: Column | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the first row of each path, in their order, and a note about the other rows.

    Raises:
      DataError: two rows of one path have other labels, groups or splits.
    """
    if len(paths.values) == len(paths):
        return np.arange(len(paths)), ()
    first = np.unique(paths.codes, return_index=True)[1]
    row_of = np.zeros(len(paths.values), np.int64)
    row_of[paths.codes[first]] = first
    values = labels.values.reshape(len(paths), -1)
    before = row_of[paths.codes]
    same = (values == values[before]) | (np.isnan(values) & np.isnan(values[before]))
    alike = same.all(axis=1)
    for column in others:
        if column is not None:
            alike &= column.codes == column.codes[before]
    if not alike.all():
        row = int(np.argmin(alike))
        raise DataError(
            f"{table.row(row)}: {paths[row]!r} is the file of row {table.number(int(before[row]))} "
            "too, with other labels, groups or splits; leave one row for each file."
        )
    note = f"{table.name}: {len(paths) - len(first)} rows repeat an earlier row and are left out"
    return np.sort(first), (note,)


def _named_part(
    table: Table,
    split: str,
    split_of: Column,
    groups: Column | None,
    labels: Labels,
    columns: Columns,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the rows of a split that a column names, and notes.

    Raises:
      DataError: there is no such split, a group is in two, or a class is in none but this one.
    """
    lower = (name.lower() for name in split_of.values)
    split_of = split_of.map(["" if name in table_labels.BLANK else name for name in lower])
    names = [name for name in split_of.values if name]
    where = f"the column {columns.split_column!r} of {table.name}"
    name, notes = splits.find(split, names, where)
    if name is None:
        shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        raise DataError(
            f"{where} has no split {split!r}; it has {shown or 'only blank cells'}. Choose one "
            "with --config.data.train_split or --config.data.eval_split."
        )
    if groups is not None:
        inside = np.flatnonzero(split_of.codes != _code(split_of, ""))
        splits.check_groups(groups.take(inside), split_of.take(inside), table.name)
    rows = split_of.rows_of(_code(split_of, name))
    train = splits.find("train", names, where)[0]
    if labels.values.ndim == 1 and train not in (None, name):
        trained = labels.values[split_of.codes == _code(split_of, train)]
        unknown = np.setdiff1d(labels.values[rows], [-1, *trained])
        if len(unknown):
            raise DataError(
                f"{table.name}: the split {name} has the class {labels.names[unknown[0]]!r}, which "
                f"{train} lacks; add examples to {train}, or remove the class."
            )
    blank = int((split_of.codes == _code(split_of, "")).sum())
    if blank:
        notes = (*notes, f"{blank} rows of {table.name} are in no split and are left out")
    return rows, notes


def _code(column: Column, value: str) -> int:
    """Returns the code of a value; -1 if the column does not have it."""
    return list(column.values).index(value) if value in column.values else -1


def _check_known(table: Table, values: np.ndarray, rows: np.ndarray, columns: Columns) -> None:
    """Raises DataError if a class is blank, or if no label of the split is known."""
    if values.ndim == 2:
        if np.isnan(values).all():
            raise DataError(
                f"{table.name}: every label of the split is unknown; choose another split, or set "
                "data.uncertain to 'zero' or 'one' if blank and -1 mean that."
            )
        return
    blank = np.flatnonzero(values < 0)
    if len(blank):
        raise DataError(
            f"{table.row(int(rows[blank[0]]))}: the class in the column "
            f"{columns.label_columns[0]!r} is blank, as in {len(blank)} rows of this split; fill "
            "it in, or remove these rows."
        )
