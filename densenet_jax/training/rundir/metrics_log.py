"""metrics.jsonl: one JSON object a line, every logged step exactly once, also over restarts."""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from densenet_jax.training.rundir import atomic_files
from densenet_jax.training.rundir.loggers import Listener

logger = logging.getLogger(__name__)
# Lines that wait for a disk that is full; beyond, the oldest are given up.
MAX_WAITING = 100_000


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics file that a run may be writing; damaged lines are left out.

    A line counts once its end is written.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in text.split("\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _is_number(record.get("step")):
            records.append(record)
    return records


class MetricsLog:
    """Appends to a metrics file, after forgetting what lies beyond the step a run resumes at."""

    def __init__(
        self,
        path: str | pathlib.Path,
        resume_step: int = 0,
        listeners: Sequence[Listener] = (),
        read_only: bool = False,
    ):
        """Opens a metrics file.

        Args:
          read_only: only look at what is there, as all processes of a job but the first one do.
        """
        self._path, self._read_only = pathlib.Path(path), read_only
        self._listeners = listeners
        self._file = None
        self._waiting: list[str] = []
        self._warned = -float("inf")
        self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Forgets the records of later steps."""
        if self._file:
            self._file.close()
        self._waiting = []
        records = [r for r in read(self._path) if r["step"] <= step]
        self.last = records[-1] if records else None
        if self._read_only:
            return
        atomic_files.write(self._path, "".join(map(_line, records)))
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._tell("restart", records)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._file:
            self._file.close()
        self._tell("close", kind is not None)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; on a disk that is full, as soon as there is space again."""
        self._append(record)
        self._tell("write", record)

    def _append(self, record: dict[str, Any]) -> None:
        self._waiting = [*self._waiting, _line(record)][-MAX_WAITING:]
        text = "".join(self._waiting).encode()
        try:
            whole = text[: self._file.write(text)].rfind(b"\n") + 1  # no line is ever torn
            error = "the disk is full"
        except OSError as e:
            whole, error = 0, str(e)
        self._size += whole
        self._waiting = self._waiting[text.count(b"\n", 0, whole) :]
        if not self._waiting:
            return
        with contextlib.suppress(OSError):  # a disk that is read-only now has nothing torn
            os.truncate(self._file.fileno(), self._size)
        self._warn("%s cannot be written (%s); its lines wait.", self._path, error)

    def _tell(self, what: str, *args: Any) -> None:
        """Tells the listeners; a training goes on without them."""
        for listener in self._listeners:
            try:
                getattr(listener, what)(*args)
            except Exception as e:
                self._warn("%s: %s; the run goes on.", type(listener).__name__, e)

    def _warn(self, text: str, *args: Any) -> None:
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            logger.warning(text, *args)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
