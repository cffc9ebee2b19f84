"""Recognises a folder whose labels are in a table beside the images, and says how to train on it.

Without this check such a folder looks like one of classes: train_images/ and test_images/ beside
train.csv would be two classes that a network learns to tell apart.
"""

import itertools
import os
import pathlib
import shlex
from collections.abc import Sequence

from densenet_jax.data.sources import table_files, table_labels
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import IMAGE_SUFFIXES
from densenet_jax.data.sources.source import DataError

LABELS = (
    *("label", "labels", "class", "classes", "class_name", "category", "target", "diagnosis", "dx"),
    *("finding labels", "species", "breed", "level", "y"),
)
GROUPS = ("patient", "patient id", "patient_id", "patientid", "subject", "subject_id", "lesion_id")
TABLES, FOLDERS, ROWS = 5, 50, 200  # that are looked at


def check(base: pathlib.Path) -> None:
    """Raises DataError, with the options to use, if a table has the labels of the images in `base`.

    Args:
      base: a folder that is about to be read as one folder for each class.
    """
    inner = _folders(base)
    for place in (base,) if inner else (base, base.parent):
        for path in _tables(place):
            options = _options(path, _reach(place))
            if options is not None:
                raise DataError(
                    f"The labels of the images in {base} seem to be in {path}, not in the names of "
                    f"folders. Train with {options}; or move the table elsewhere, if the folders "
                    "are the classes."
                )


def _folders(base: pathlib.Path) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []


def _tables(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the tables in a folder, those of training data first."""
    try:
        names = [name for name in os.listdir(folder) if name[0] != "."]
    except OSError:
        return []
    found = [folder / name for name in names if name.lower().endswith(table_files.SUFFIXES)]
    found.sort(key=lambda path: ("train" not in path.name.lower(), path.name))
    return found[:TABLES]


def _reach(base: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in which images are looked for: `base` and two levels below it."""
    folders = [base]
    for depth in range(2):
        inner = [f / name for f in folders[depth:] for name in _folders(f)[:FOLDERS]]
        folders += inner[: FOLDERS - len(folders)]
    return folders


def _options(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> str | None:
    """Returns the options that train on a table; None if it has no labels of these images."""
    try:
        table = table_files.read(path, {}, rows=ROWS)
    except DataError:
        return None
    columns = table.columns
    name = next((key for key in columns if _names_images(columns[key], folders)), None)
    if name is None:
        return None
    column = columns[name]
    parents = [_place(cell, folders) for cell in column]
    others = {key: other for key, other in columns.items() if key != name}
    if any(_same_division(other, parents) for other in others.values()):
        return None  # the folders are the classes, which the table repeats
    labels, task = _guess(others)
    if not labels:
        return None
    group = next((key for key in others if key.lower() in GROUPS), "")
    chosen = {"name": "table", "data_dir": str(path), "path_column": name}
    chosen["label_columns"] = labels[0] if labels[0].isidentifier() else str(labels)
    if len(labels) > 1:
        chosen["label_columns"] = str(labels)
    if group:
        chosen["group_column"] = group
    words = [f"--config.data.{key}={value}" for key, value in chosen.items()]
    if task != "classification":
        words.insert(0, f"--config.task={task}")
    return " ".join(map(shlex.quote, words))


def _names_images(column: Column, folders: Sequence[pathlib.Path]) -> bool:
    """Whether at least half of the first values of a column name an image."""
    first = column.values[:20]
    return sum(_place(cell, folders) is not None for cell in first) * 2 >= len(first)


def _place(cell: str, folders: Sequence[pathlib.Path]) -> str | None:
    """Returns the name of the folder that has the image of a cell; None if not just one has it."""
    cell = cell.replace("\\", "/")
    if not cell or len(cell) > 255 or "\0" in cell:
        return None
    files = (
        folder / f"{cell}{suffix}"
        for folder, suffix in itertools.product(folders, ("", *IMAGE_SUFFIXES))
    )
    found = [
        file.parent.name
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    return found[0] if len(found) == 1 else None


def _same_division(column: Column, parents: Sequence[str | None]) -> bool:
    """Whether a column divides rows as the folders of their images do, or names these folders."""
    pairs = {(cell, place) for cell, place in zip(column, parents, strict=True) if place}
    cells, places = {cell for cell, _ in pairs}, {place for _, place in pairs}
    named = all(cell.lower() == (place or "").lower() for cell, place in pairs)
    return bool(pairs) and (named or len(pairs) == len(cells) == len(places) > 1)


def _guess(columns: dict[str, Column]) -> tuple[tuple[str, ...], str]:
    """Returns the names of the columns that look like labels, and their task."""
    several = {name: column for name, column in columns.items() if len(set(column.values)) > 1}
    named = [name for name in several if name.lower() in LABELS]
    flags = tuple(n for n, c in columns.items() if all(map(table_labels.is_share, c.values)))
    if not named and len(flags) > 1:
        return flags, "multilabel"
    named = named or sorted(several, key=lambda name: len(several[name].values))
    if not named:
        return (), ""
    cells = several[named[0]].values
    if any("|" in cell for cell in cells):
        return (named[0],), "multilabel"
    fractions = all(map(table_labels.is_number, cells)) and any("." in cell for cell in cells)
    return (named[0],), "regression" if fractions else "classification"
