"""Files that are whole or not there, also after a power cut."""

import contextlib
import os
import pathlib


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its name, waits until the disk has it, and gives it the name."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: pathlib.Path) -> None:
    """Waits until the disk has a file; or the names in a folder, where that can be asked for."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
