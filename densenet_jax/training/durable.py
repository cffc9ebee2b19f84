"""Files that are whole or not there, also after a power cut."""

import os
import pathlib


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its name, waits until the disk has it, and gives it the name."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
