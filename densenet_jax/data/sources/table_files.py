"""Tables in memory, read from .csv, .tsv and .parquet files or from records.

Nothing in a file is trusted: the length of lines and cells is bounded, and every row must have as
many cells as the header.
"""

import collections
import csv
import difflib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np

from densenet_jax.data.sources.columns import Builder, Column
from densenet_jax.data.sources.source import DataError

SUFFIXES = (".csv", ".tsv", ".parquet")
LINE_BYTES = 2**20  # longest line of a text file
AT_ONCE = 256  # rows that are turned into columns together; they fit the processor's cache
# Other columns are kept for scores of subgroups, if they have at most so many distinct values.
DISTINCT = 1000


class Table(NamedTuple):
    """The columns of a table.

    Attributes:
      name: of the file, for messages.
      header: the names of all columns.
      columns: the columns by name, those with many distinct values only if they were asked for.
      notes: sentences about how the file was read.
      blank: numbers of the lines that are left out, counted like rows.
    """

    name: str
    header: tuple[str, ...]
    columns: dict[str, Column]
    notes: tuple[str, ...] = ()
    blank: tuple[int, ...] = ()

    def column(self, name: str, option: str) -> Column:
        """Returns a column; raises DataError, which names the option, if there is none.

        Args:
          name: of the column.
          option: key of the configuration that names it, such as "data.path_column".
        """
        check_header(self.header, {name: option}, self.name)
        return self.columns[name]

    def row(self, i: int) -> str:
        """Returns "NAME, row 7" for row i, see `number`."""
        return f"{self.name}, row {self.number(i)}"

    def number(self, i: int) -> int:
        """Returns the number of row i as spreadsheets count: the header is 1, blank lines too."""
        for number in self.blank:
            i += number <= i
        return i + 2


def read(path: pathlib.Path, needed: Mapping[str, str], rows: int | None = None) -> Table:
    """Returns the table in a file.

    Args:
      path: a .csv file (separated by `,`, `;` or tabs; UTF-8, UTF-16 or Latin-1), .tsv or .parquet.
      needed: {name of a column: the option that names it}, the columns that are kept whatever
        their size.
      rows: number of rows to read; None: all.

    Raises:
      DataError: the file cannot be read, its separator is ambiguous, a needed column is missing, it
        has no rows, or a row has more or fewer cells than the header.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file; set data.data_dir to a table.")
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path, needed, rows)
        with path.open("rb") as file:
            start = file.read(4)
        wide = start[:2] in (b"\xff\xfe", b"\xfe\xff") and start != b"\xff\xfe\0\0"  # UTF-32
        _check_lines(path, wide)
        try:
            return _read_text(path, "utf-16" if wide else "utf-8-sig", needed, rows)
        except UnicodeDecodeError:
            if wide:
                raise DataError(
                    f"{path} begins as UTF-16 text but is not; save it as UTF-8."
                ) from None
        table = _read_text(path, "latin-1", needed, rows)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}.") from e
    return table._replace(notes=(*table.notes, f"{path} is not UTF-8; it was read as Latin-1"))


def from_records(
    records: Iterable[Mapping[str, Any]], needed: Mapping[str, str], name: str = "the records"
) -> Table:
    """Returns a table of records; its columns are the keys of the first one.

    Args:
      records: cells are text, numbers, booleans, None, or lists of them; a missing key is blank.
      needed: as of `read`.
      name: of the records, for messages.

    Raises:
      DataError: there are no records, one has a key that the first lacks, or a column is missing.
    """
    rest = iter(records)
    first = next(rest, None)
    if first is None:
        raise DataError(f"{name} are empty; give at least one record.")
    header = tuple(first)

    def rows() -> Iterator[list[str]]:
        for i, record in enumerate(itertools.chain((first,), rest)):
            if unknown := record.keys() - set(header):
                raise DataError(
                    f"{name}: record {i} has {sorted(unknown)[0]!r}, which the first record lacks; "
                    "give all records the same keys."
                )
            yield [_text(record.get(key)) for key in header]

    return _collect(name, header, _parts(rows(), header, name, []), needed)


def check_header(header: Sequence[str], needed: Mapping[str, str], name: str) -> None:
    """Raises DataError if a column is missing, or is there twice.

    Args:
      header: the names of all columns.
      needed: {name of a column: the option that names it}.
      name: of the table.
    """
    for column, option in needed.items():
        if header.count(column) == 1:
            continue
        if column in header:
            raise DataError(f"{name} has the column {column!r} twice; rename one of them.")
        lower = {other.lower(): other for other in header}
        near = difflib.get_close_matches(column.lower(), lower, n=1)
        hint = f" (did you mean {lower[near[0]]!r}?)" if near else ""
        if set(map(str.strip, column.split(","))) <= set(header):
            hint = f' (several are written "{tuple(map(str.strip, column.split(",")))}")'
        shown = ", ".join(header[:40]) + ", ..." * (len(header) > 40)
        raise DataError(
            f"{name} has no column {column!r}{hint}; it has {shown}. Set {option} to one of them."
        )


def _collect(
    name: str,
    header: tuple[str, ...],
    parts: Iterable[Sequence[Sequence[str]]],
    needed: Mapping[str, str],
) -> Table:
    """Returns the table whose rows come in parts, each a list of columns."""
    check_header(header, needed, name)
    times = collections.Counter(header)
    builders = {i: Builder() for i, key in enumerate(header) if key and times[key] == 1}
    rows = 0
    for part in parts:
        rows += len(part[0])
        for i in list(builders):
            builders[i].extend(part[i])
            if builders[i].distinct > DISTINCT and header[i] not in needed:
                del builders[i]
    if not rows:
        raise DataError(f"{name} has a header but no rows; add rows, or choose another table.")
    columns = {}
    for i, builder in builders.items():
        column = builder.finish()
        columns[header[i]] = column.map([value.strip() for value in column.values])
    return Table(name, header, columns)


# --- text ---------------------------------------------------------------------------------------


def _read_text(
    path: pathlib.Path, encoding: str, needed: Mapping[str, str], limit: int | None
) -> Table:
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(path, encoding, needed)
    blank: list[int] = []
    with path.open(encoding=encoding, newline="") as file:
        reader = _reader(file, separator)
        try:
            first = next(filter(None, reader), None)
            if first is None:
                raise DataError(f"{path} is empty; it needs a header and rows.")
            header = [cell.strip() for cell in first]
            parts = _parts(itertools.islice(reader, limit), header, str(path), blank)
            table = _collect(str(path), tuple(header), parts, needed)
        except csv.Error as e:
            raise DataError(
                f"{path}, line {reader.line_num}: {e}. Correct the quotes of this row, or of the "
                "one in which its quoted cell began."
            ) from None
    return table._replace(blank=tuple(blank))


def _reader(file: TextIO, separator: str) -> Any:
    return csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)


def _check_lines(path: pathlib.Path, wide: bool) -> None:
    """Raises DataError if a file is no text, or has lines that would fill the memory.

    Args:
      path: of the file.
      wide: whether it is UTF-16, in which zero bytes are half of the letters.
    """
    with path.open("rb") as file:
        while part := file.read(LINE_BYTES):
            if not wide and b"\0" in part:
                raise DataError(
                    f"{path} has bytes that are no text: it is another kind of file, or in an "
                    "encoding without its mark. Save it as UTF-8."
                )
            if len(part) == LINE_BYTES and b"\n" not in part and b"\r" not in part:
                raise DataError(f"{path} has a line of {LINE_BYTES} bytes or more: it is no table.")


def _parts(
    rows: Iterable[list[str]], header: Sequence[str], name: str, blank: list[int]
) -> Iterator[list[tuple[str, ...]]]:
    """Yields the columns of many rows at a time.

    Args:
      rows: of the file, without the header.
      header: the names of all columns.
      name: of the file.
      blank: receives the numbers of blank lines, which are left out.

    Raises:
      DataError: a row has more or fewer cells than the header.
    """
    rows, start = iter(rows), 0
    while part := list(itertools.islice(rows, AT_ONCE)):
        if set(map(len, part)) != {len(header)}:
            for i, row in enumerate(part):
                if not row:
                    blank.append(start + i)
                elif len(row) != len(header):
                    raise DataError(
                        f"{name}, row {start + i + 2} has {len(row)} cells, but the header has "
                        f"{len(header)}; the row begins with {row[0]!r}. Correct it, or put quotes "
                        "around cells that contain the separator."
                    )
        start += len(part)
        if full := [row for row in part if row]:
            yield list(zip(*full, strict=True))


def _separator(path: pathlib.Path, encoding: str, needed: Iterable[str]) -> str:
    """Returns the separator of a .csv file: `,`, `;` or a tab.

    It is the one whose header has the needed columns; otherwise the only one in the header.

    Raises:
      DataError: several are possible.
    """
    headers: dict[str, list[str]] = {}
    for separator in ",;\t":
        with path.open(encoding=encoding, newline="") as file:
            try:
                header: list[str] = next(filter(None, _reader(file, separator)), [])
            except csv.Error:
                continue
        headers[separator] = [cell.strip() for cell in header]
    fitting = [key for key, header in headers.items() if set(needed) <= set(header)]
    if len(fitting) == 1:
        return fitting[0]
    several = [key for key, header in headers.items() if len(header) > 1]
    if len(several) > 1:
        shown = " or ".join({",": "a comma", ";": "a semicolon", "\t": "a tab"}[s] for s in several)
        raise DataError(
            f"{path}: its separator may be {shown}, as the header has all of them; put quotes "
            "around column names with such a character, or save the table with tabs as .tsv."
        )
    return several[0] if several else ","


# --- Parquet ------------------------------------------------------------------------------------


def _read_parquet(path: pathlib.Path, needed: Mapping[str, str], limit: int | None) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{path} needs the package pyarrow; install it (pip install pyarrow), or save the "
            "table as .csv."
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            header = tuple(schema.names)
            check_header(header, needed, str(path))
            odd = {
                field.name
                for field in schema
                if pa.types.is_struct(field.type)
                or pa.types.is_binary(field.type)
                or pa.types.is_map(field.type)
            }
            if unusable := odd & needed.keys():
                column = min(unusable)
                raise DataError(
                    f"{path}: the column {column!r} is a {schema.field(column).type}; "
                    f"{needed[column]} needs text or numbers."
                )
            read = [name for name in header if name not in odd]
            batches = itertools.islice(
                file.iter_batches(batch_size=min(limit or AT_ONCE, AT_ONCE), columns=read),
                1 if limit else None,
            )
            parts = ([list(map(_text, c.to_pylist())) for c in batch.columns] for batch in batches)
            table = _collect(str(path), tuple(read), parts, needed)
    except pa.ArrowException as e:
        raise DataError(f"{path} is not a readable Parquet file: {' '.join(str(e).split())}") from e
    return table._replace(header=header)


def _text(cell: Any) -> str:
    """Returns a cell as the text that a .csv file would have."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, np.generic | np.ndarray):
        return _text(cell.tolist())
    if cell is None or cell != cell:  # NaN
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, os.PathLike):
        return os.fspath(cell)
    if isinstance(cell, list | tuple | set):
        return "|".join(map(_text, cell))
    return str(cell)
