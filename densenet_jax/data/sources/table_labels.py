"""Reads the labels of each task from the label columns of a table."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.table_files import Table

OPTION = "data.label_columns"
UNCERTAIN = {"ignore": math.nan, "zero": 0.0, "one": 1.0}
BLANK = ("", "nan")  # cells without a value
NO_LABEL = "no finding"  # in a list of labels: none of them is present (ChestX-ray14)
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
SHARES = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}


class Labels(NamedTuple):
    """The labels of a table.

    Attributes:
      names: of the classes, of the labels, or of the numbers.
      values: int32 [N], -1 for a blank cell; or float32 [N, L], NaN where a label is unknown.
      notes: sentences about how cells were read.
    """

    names: tuple[str, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()


def interpret(table: Table, columns: Sequence[str], task: str, uncertain: str) -> Labels:
    """Returns the labels of all rows of a table.

    Args:
      table: the table.
      columns: names of the label columns: for classification one; for multilabel one, of lists such
        as "A|B", or several of 1, 0, -1 and blank; for regression one or more of numbers.
      task: "classification", "multilabel" or "regression".
      uncertain: what -1 and a blank cell mean in multilabel: "ignore", "zero" or "one".

    Raises:
      DataError: the columns suit another task, a cell is no label, or every label is unknown.
    """
    if uncertain not in UNCERTAIN:
        raise DataError(
            f"data.uncertain is {uncertain!r}; it must be one of {', '.join(UNCERTAIN)}."
        )
    if not columns or len(set(columns)) < len(columns):
        raise DataError(f"{OPTION} is {tuple(columns)}; name one column or more, each once.")
    cells = {name: table.column(name, OPTION) for name in columns}
    if task == "classification":
        return _classes(table, cells)
    if task == "regression":
        return _numbers(table, cells)
    if len(cells) == 1:
        (column,) = cells.values()
        if not all(map(is_share, column.values)):
            return _lists(table, column, columns[0], uncertain)
    found = _columns(table, cells, uncertain)
    if len(cells) > 1:
        return found
    note = f"{table.name}: the column {columns[0]!r} is one label, which is present (1) or absent"
    return found._replace(notes=(*found.notes, note))


def _number(cell: str) -> float:
    """Returns the number in a cell, NaN for a blank one; raises ValueError if it has none."""
    if cell.lower() in BLANK:
        return math.nan
    value = float(cell)
    if not math.isfinite(value) or "_" in cell:
        raise ValueError(cell)
    return value


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number, or blank."""
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _share(cell: str) -> float:
    """Returns 0 or 1, -1 for an uncertain label, NaN for a blank cell; raises ValueError."""
    value = SHARES.get(cell.lower())
    value = _number(cell) if value is None else value
    if value in (-1, 0, 1) or math.isnan(value):
        return value
    raise ValueError(cell)


def is_share(cell: str) -> bool:
    """Whether a cell is a label of several: 1, 0, -1 or blank."""
    try:
        _share(cell)
    except ValueError:
        return False
    return True


def _convert(
    table: Table, name: str, column: Column, convert: Callable[[str], float], allowed: str
) -> np.ndarray:
    """Returns the cells of a column as numbers, float32 [N].

    Raises:
      DataError: a cell is not `allowed`; the message names its row and column.
    """
    values = np.zeros(len(column.values))
    for code, cell in enumerate(column.values):
        try:
            values[code] = convert(cell)
        except ValueError:
            row = int(column.rows_of(code)[0])
            raise DataError(
                f"{table.row(row)}: the column {name!r} has {cell!r}; {allowed}."
            ) from None
        if abs(values[code]) > np.finfo(np.float32).max:
            row = int(column.rows_of(code)[0])
            raise DataError(f"{table.row(row)}: {cell} in the column {name!r} is too large.")
    return values.astype(np.float32)[column.codes]


def _classes(table: Table, cells: dict[str, Column]) -> Labels:
    """Returns the classes in sorted order, numbers by size, and each row's class."""
    if len(cells) > 1:
        shares = all(is_share(cell) for column in cells.values() for cell in column.values)
        task = "multilabel" if shares else "regression"
        raise DataError(
            f"{OPTION} names {len(cells)} columns, but config.task=classification takes one, the "
            f"class; set --config.task={task} for one output for each column."
        )
    ((name, column),) = cells.items()
    kinds = [cell for cell in column.values if cell.lower() not in BLANK]
    listed = next((cell for cell in kinds if "|" in cell), None)
    if listed is not None:
        raise DataError(
            f"{table.row(int(column.rows_of(list(column.values).index(listed))[0]))}: the column "
            f"{name!r} has the list of labels {listed!r}, but config.task is classification; set "
            "--config.task=multilabel."
        )
    numeric = bool(kinds) and all(map(is_number, kinds))
    if numeric and any(not _number(cell).is_integer() for cell in kinds):
        raise DataError(
            f"The column {name!r} of {table.name} has numbers with fractions, such as "
            f"{next(c for c in kinds if not _number(c).is_integer())}, but config.task is "
            "classification; set --config.task=regression to predict them."
        )
    names = sorted(kinds, key=lambda cell: (_number(cell), cell)) if numeric else sorted(kinds)
    if numeric and len(set(map(_number, names))) < len(names):
        first, second = next(
            (a, b) for a, b in itertools.pairwise(names) if _number(a) == _number(b)
        )
        raise DataError(
            f"The column {name!r} of {table.name} writes one number in two ways, {first!r} and "
            f"{second!r}; write the classes in one way."
        )
    if len(names) < 2:
        raise DataError(
            f"The column {name!r} of {table.name} has {len(names)} classes"
            f"{f' ({names[0]})' if names else ''}; a classifier needs at least two. Set {OPTION} "
            "to another column."
        )
    label_of = {cell: label for label, cell in enumerate(names)}
    labels = np.array([label_of.get(cell, -1) for cell in column.values], np.int32)
    return Labels(tuple(names), labels[column.codes])


def _numbers(table: Table, cells: dict[str, Column]) -> Labels:
    """Returns the numbers of each row, NaN for blank cells."""
    allowed = "config.task=regression needs numbers such as 3.5, or blank cells for unknown ones"
    values = [_convert(table, name, column, _number, allowed) for name, column in cells.items()]
    return _with_unknown(table, tuple(cells), np.stack(values, 1), blanks=None, uncertain="ignore")


def _columns(table: Table, cells: dict[str, Column], uncertain: str) -> Labels:
    """Returns the labels of a table with a column of 1, 0, -1 and blank cells for each."""
    allowed = (
        "a label is 1 (present), 0 (absent), -1 (uncertain) or blank; for numbers to predict set "
        "--config.task=regression"
    )
    values = [_convert(table, name, column, _share, allowed) for name, column in cells.items()]
    stacked = np.stack(values, 1)
    blanks = np.isnan(stacked) | (stacked == -1)
    stacked[blanks] = UNCERTAIN[uncertain]
    return _with_unknown(table, tuple(cells), stacked, int(blanks.sum()), uncertain)


def _split(cell: str) -> list[str]:
    """Returns the labels of a list: A|B, or ['A', 'B'] as Python and JSON write it (PadChest)."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell.split("|")
    return [first or second for first, second in QUOTED.findall(cell)]


def _lists(table: Table, column: Column, name: str, uncertain: str) -> Labels:
    """Returns the labels of a column of lists, see `_split`, in sorted order."""
    blank = np.array([cell.lower() in BLANK for cell in column.values])
    lists = [
        [] if absent else sorted({label.strip() for label in _split(cell)} - {""})
        for cell, absent in zip(column.values, blank, strict=True)
    ]
    for code, labels in enumerate(lists):
        without = [label for label in labels if label.lower() == NO_LABEL]
        if without and len(labels) > 1:
            row = int(column.rows_of(code)[0])
            raise DataError(
                f"{table.row(row)}: the column {name!r} has {column.values[code]!r}, which says "
                f"{without[0]!r} and more; remove one of them."
            )
        if without:
            lists[code] = []
    names = sorted(set().union(*lists))
    if not names:
        raise DataError(f"The column {name!r} of {table.name} has no labels; choose another one.")
    index = {label: i for i, label in enumerate(names)}
    rows = np.zeros((len(lists), len(names)), np.float32)
    for code, labels in enumerate(lists):
        rows[code, [index[label] for label in labels]] = 1
    if blank.any() and uncertain == "one":
        row = int(column.rows_of(int(np.flatnonzero(blank)[0]))[0])
        raise DataError(
            f"{table.row(row)}: the column {name!r} is blank, which cannot mean that all "
            f"{len(names)} labels are present; set data.uncertain to 'ignore' or 'zero'."
        )
    rows[blank] = UNCERTAIN[uncertain]
    blanks = int(blank[column.codes].sum()) * len(names)
    found = _with_unknown(table, tuple(names), rows[column.codes], blanks, uncertain)
    if max(map(len, lists)) > 1:
        return found
    note = f"no row of {table.name} has more than one label in the column {name!r} (separator |)"
    return found._replace(notes=(*found.notes, note))


def _with_unknown(
    table: Table, names: tuple[str, ...], values: np.ndarray, blanks: int | None, uncertain: str
) -> Labels:
    """Returns labels with a note about unknown ones.

    Args:
      table: the table.
      names: of the L labels.
      values: float32 [N, L].
      blanks: number of cells that are -1 or blank; None: those that are NaN.
      uncertain: how they were read.

    Raises:
      DataError: a label has no known value.
    """
    nowhere = np.isnan(values).all(axis=0)
    if nowhere.any():
        name = names[int(np.argmax(nowhere))]
        raise DataError(
            f"{table.name} has no known value of {name!r} in any row; leave it out of {OPTION}, or "
            "set data.uncertain to 'zero' or 'one' if blank and -1 mean that."
        )
    count = int(np.isnan(values).sum()) if blanks is None else blanks
    if not count:
        return Labels(names, values)
    meaning = {"ignore": "unknown, and count in no loss and no metric", "zero": "0", "one": "1"}
    note = f"{count} of {values.size} labels of {table.name} are -1 or blank: {meaning[uncertain]}"
    return Labels(names, values, (note,))
