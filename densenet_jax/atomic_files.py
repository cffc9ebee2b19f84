"""Atomic writes: after a crash or a power cut, a file is either complete or absent."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, waits until it is on disk, and renames it.

    Args:
      path: the file.
      content: its new content; text is encoded as UTF-8.

    Raises:
      OSError: see `replacing`.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yields a file to write, which then takes the place of another one.

    Args:
      path: of the file.  Until it is complete it has a random name, so that two processes may
        write it at the same time: the later one wins.

    Raises:
      OSError: it cannot be written, and names `path`; an older file of this name is unchanged, and
        no part of the new one is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(e, OSError):  # that of a full disk names no file
            raise OSError(e.errno, e.strerror or str(e), str(path)) from e
        raise


def flush(path: pathlib.Path) -> None:
    """Waits until a file, or the list of names in a folder, is on disk.

    Some file systems do not support this for folders, which is ignored; Windows does so only for
    files that are open to write.
    """
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
