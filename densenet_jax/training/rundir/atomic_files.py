"""Atomic writes: after a crash or a power cut, a file is either complete or absent."""

import contextlib
import os
import pathlib


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name, waits until it is on disk, and renames it.

    Args:
      path: the file; PATH.tmp is the temporary name.
      text: its new content, encoded as UTF-8.

    Raises:
      OSError: it cannot be written; an older file of this name is unchanged.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: pathlib.Path) -> None:
    """Waits until a file, or the list of names in a folder, is on disk.

    Some file systems do not support this for folders, which is ignored.
    """
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
