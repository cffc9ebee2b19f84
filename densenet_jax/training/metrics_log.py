"""metrics.jsonl: one JSON object a line, every logged step exactly once, also over restarts."""

import json
import os
import pathlib
from typing import Any


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics file; a torn last line is left out."""
    records = []
    path = pathlib.Path(path)
    if not path.exists():
        return records
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            records.append(json.loads(line))
    return records


class MetricsLog:
    """Appends to a metrics file, after forgetting what lies beyond the step a run resumes at."""

    def __init__(self, path: str | pathlib.Path, resume_step: int = 0):
        self._path = pathlib.Path(path)
        records = [r for r in read(self._path) if r["step"] <= resume_step]
        self.last = records[-1] if records else None
        # Written aside and renamed, so that a crash here loses nothing.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, records)), encoding="utf-8")
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, in one write so that a line is whole or torn, never interleaved."""
        self._file.write(_line(record))
        self._file.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
