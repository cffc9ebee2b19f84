"""metrics.jsonl: one JSON object per line, each logged step exactly once, even after restarts."""

import contextlib
import io
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from densenet_jax import atomic_files
from densenet_jax.training.rundir import bounded_files
from densenet_jax.training.rundir.loggers import Listener

logger = logging.getLogger(__name__)
# The most lines that are kept in memory while the disk is full; then the oldest are dropped.
MAX_WAITING = 100_000
MAX_LINE = 2**20  # bytes


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns all records of a metrics file in a list, see `records`."""
    return list(records(path))


def records(path: str | pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a metrics file, which a run may be writing at the same time.

    A last line whose end has not been written yet is left out.  So are lines that no run has
    written; a warning has their number.

    Args:
      path: the file; if it does not exist, there are no records.
    """
    damaged = 0
    with contextlib.suppress(OSError), bounded_files.open_file(path) as file:
        whole = True  # whether the next piece begins a line
        while piece := file.readline(MAX_LINE):
            begins, whole = whole, piece.endswith(b"\n")
            record = _record(piece) if begins and whole else None
            if record is not None:
                yield record
            elif whole:
                damaged += 1
    if damaged:
        logger.warning("%s: %d damaged lines are left out.", path, damaged)


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a line; None if no run could have written it."""
    try:
        record = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not _is_whole(record.get("step")) or record["step"] < 0:
        return None
    huge = any(type(value) is int and not _is_whole(value) for value in record.values())
    return None if huge else record


class MetricsLog:
    """Appends records to a metrics file; a context manager that closes it.

    Attributes:
      last: the last record when the run was resumed; None if there was none.
      evaluations: the records of evaluations when the run was resumed.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        resume_step: int = 0,
        listeners: Sequence[Listener] = (),
        read_only: bool = False,
    ) -> None:
        """Opens a metrics file, and removes the records after the step at which a run resumes.

        Args:
          path: the file, created if it does not exist.
          resume_step: the step at which the run resumes; 0 for a new run.
          listeners: receive all records.
          read_only: whether to read existing records only, as all processes of a job but the first
            do.
        """
        self._path, self._read_only = pathlib.Path(path), read_only
        self._listeners = listeners
        self._file: io.FileIO | None = None
        self._waiting: list[str] = []
        self._warned = -float("inf")
        self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Removes the records of later steps, also from the listeners."""
        if self._file:
            self._file.close()
        self._waiting = []
        self.last: dict[str, Any] | None = None
        self.evaluations: list[dict[str, Any]] = []
        told: list[dict[str, Any]] = []  # records, if anybody listens
        with contextlib.ExitStack() as stack:
            kept = None
            if not self._read_only:
                kept = stack.enter_context(atomic_files.replacing(self._path))
            for record in records(self._path):  # one at a time: there may be millions
                if record["step"] > step:
                    continue
                self.last = record
                if record.get("split") == "eval":
                    self.evaluations.append(record)
                if kept:
                    kept.write(_line(record).encode())
                if self._listeners:
                    told.append(record)
        if self._read_only:
            return
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._tell("restart", told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file:
            self._file.close()
        self._tell("close", kind is not None)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record and sends it to the listeners.

        While the disk is full, records wait in memory until there is space again.
        """
        self._append(record)
        self._tell("write", record)

    def _append(self, record: dict[str, Any]) -> None:
        assert self._file is not None, "a read-only log is not written to"
        self._waiting = [*self._waiting, _line(record)][-MAX_WAITING:]
        text = "".join(self._waiting).encode()
        try:
            whole = (
                text[: self._file.write(text)].rfind(b"\n") + 1
            )  # the end of the last whole line
            error = "the disk is full"
        except OSError as e:
            whole, error = 0, str(e)
        self._size += whole
        self._waiting = self._waiting[text.count(b"\n", 0, whole) :]
        if not self._waiting:
            return
        with contextlib.suppress(OSError):  # on a read-only disk no partial line was written
            os.truncate(self._file.fileno(), self._size)
        self._warn(
            "%s cannot be written (%s); its lines wait in memory and are written later.",
            self._path,
            error,
        )

    def _tell(self, what: str, *args: Any) -> None:
        """Calls a method of all listeners; their exceptions do not stop the training."""
        for listener in self._listeners:
            try:
                getattr(listener, what)(*args)
            except Exception as e:
                self._warn("%s: %s; the run goes on.", type(listener).__name__, e)

    def _warn(self, text: str, *args: Any) -> None:
        """Logs a warning, at most one a minute."""
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            logger.warning(text, *args)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number that a float holds exactly."""
    return type(value) is int and abs(value) <= 2**53
