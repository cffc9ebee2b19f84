"""Reads files of a run's directory that other people may have written, within limits.

Checksums detect damage, but not deliberate changes.  So no content is trusted: a pipe is not waited
for, and a file that is a pipe, too large or nested too deeply is an error, as a damaged one is.
"""

import errno
import json
import os
import pathlib
import stat
import zipfile
from typing import Any, BinaryIO

import numpy as np

MAX_BYTES = 2**26
MAX_ARRAYS = 2**31
# Without O_NONBLOCK, a pipe would be waited for before it can be looked at. Windows lacks the first
# two, other systems the last.
FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
NOT_REGULAR = "it is not a regular file"


def open_file(path: str | pathlib.Path) -> BinaryIO:
    """Opens a file to read it.

    Raises:
      OSError: there is no such file, it cannot be read, or it is a pipe, a device or a folder,
        which could keep the reader waiting for ever.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | FLAGS), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def read_json(path: str | pathlib.Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
      OSError: see `open_file`.
      ValueError: it has more than `MAX_BYTES`, or is not JSON.
    """
    with open_file(path) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_regular(folder: pathlib.Path) -> None:
    """Checks that a folder holds only files and folders, or links to them, at any depth.

    Raises:
      OSError: it holds a pipe, a device or a socket.
    """
    for path in folder.rglob("*"):
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file.

    Raises:
      OSError: see `open_file`.
      ValueError: it is damaged, or its arrays have more than `MAX_ARRAYS` bytes.
    """
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                # Nothing beyond these sizes is decompressed, whatever the members hold.
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_ARRAYS:
                raise ValueError(f"its arrays have more than {MAX_ARRAYS:,} bytes")
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except OSError:
            raise
        except Exception as e:  # zipfile, zlib and NumPy raise errors of many types
            raise ValueError(str(e) or type(e).__name__) from None
