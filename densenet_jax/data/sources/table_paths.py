"""Finds the image files that the path column of a table names."""

import os
import pathlib
import posixpath
import re

from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import Names
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.table_files import Table

OPTION = "data.path_column"
# In backslashes, drives, URLs, absolute and blank paths, and those that can be written shorter.
UNUSUAL = ("\\", ":", "//", "/.", "\n.", "\n/", "/\n", "\n\n")
NAMED = 3  # missing files that a message lists
ELSEWHERE = re.compile(r"[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]*://|/")  # drive, URL, or absolute


def locate(table: Table, column: Column, root: pathlib.Path) -> tuple[Column, tuple[str, ...]]:
    """Returns the path of each row's file, relative to a folder, and notes about the search.

    A cell is a path relative to the folder. If there is no such file,

    1. a first folder that all cells share and that does not exist is dropped (CheXpert's table
       lies in the folder with which its paths begin);
    2. the file is searched for below the folder by its name, with or without suffix.

    Args:
      table: the table.
      column: its column of paths.
      root: the folder.

    Raises:
      DataError: a path leaves the folder, files are missing, or several files have the name.
    """
    everything = "\n".join(("", *column.values, ""))  # one search in a million paths is fast
    if any(mark in everything for mark in UNUSUAL):
        numbers = range(len(column.values))
        column = column.map([_inside(table, column, code, root) for code in numbers])
    notes: list[str] = []
    paths = list(column.values)
    missing = _missing(paths, root)
    outer = _shared_folder(paths) if missing else ""
    if outer and not (root / outer).exists():
        shorter = [path.partition("/")[2] for path in paths]
        still = _missing(shorter, root)
        if len(still) < len(missing):
            paths, missing = shorter, still
            notes.append(f"{table.name}: paths are taken without their first folder, {outer}/")
    if missing:
        names, found = Names(root), 0
        for code in list(missing):
            folder, _, name = paths[code].rpartition("/")
            near = [p for p in names.find(name) if not folder or p.rpartition("/")[0] == folder]
            if len(near) > 1:
                raise DataError(
                    f"{table.row(int(column.rows_of(code)[0]))}: {paths[code]!r} may be {near[0]} "
                    f"or {near[1]} in {root}; write the whole path in {OPTION}."
                )
            if near:
                paths[code] = near[0]
                missing.remove(code)
                found, example = found + 1, near[0]
        if found:
            notes.append(
                f"{table.name}: {found} files are found below {root} by their names, as {example}"
            )
    if missing:
        shown = ", ".join(column.values[code] for code in sorted(missing)[:NAMED])
        raise DataError(
            f"{table.name}: {len(missing)} of {len(paths)} files are missing in {root}: {shown}"
            f"{', ...' * (len(missing) > NAMED)}. Add the files, or remove their rows."
        )
    return column.map(paths), tuple(notes)


def _inside(table: Table, column: Column, code: int, root: pathlib.Path) -> str:
    """Returns a cell as a path relative to `root` with forward slashes.

    Raises:
      DataError: it is blank, or leads out of the folder.
    """
    cell = column.values[code]
    path = cell.replace("\\", "/")
    if ELSEWHERE.match(path):
        path = posixpath.relpath(path, os.path.abspath(root)) if path[0] == "/" else "../" + path
    elif "./" in path or "//" in path or path.endswith(("/.", "/..", "/")) or path in (".", ".."):
        path = posixpath.normpath(path)
    if path and not path.startswith("../") and path not in (".", ".."):
        return path
    where = f"{table.row(int(column.rows_of(code)[0]))}: "
    if not path:
        raise DataError(f"{where}the path is blank; fill it in, or remove the row.")
    raise DataError(
        f"{where}{cell!r} leads out of the folder {root}; paths are relative to the table's "
        "folder. Move the table, or write relative paths."
    )


def _shared_folder(paths: list[str]) -> str:
    """Returns the first folder that all paths have; "" if there is none."""
    outer, _, _ = paths[0].partition("/")
    return outer if all(path.startswith(f"{outer}/") for path in paths) else ""


def _missing(paths: list[str], root: pathlib.Path) -> set[int]:
    """Returns the numbers of the paths that are not files; each folder is listed once."""
    by_folder: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        by_folder.setdefault(path.rpartition("/")[0], []).append(i)
    missing: set[int] = set()
    for folder, numbers in by_folder.items():
        try:
            there = set(os.listdir(root / folder))
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            there = set()
        start = len(folder) + 1 if folder else 0
        missing.update(i for i in numbers if paths[i][start:] not in there)
        # A name without a suffix may be that of a folder.
        unusual = [i for i in numbers if "." not in paths[i][-6:] and i not in missing]
        missing.update(i for i in unusual if (root / paths[i]).is_dir())
    return missing
