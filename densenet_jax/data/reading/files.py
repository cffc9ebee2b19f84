"""Reads the file of an image, if it is a regular file of a reasonable size."""

import os
import stat

from densenet_jax.data.reading.limits import MAX_FILE_BYTES, ImageError


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of an image file.

    Raises:
      ImageError: it is not a regular file, or has more bytes than any image.
      OSError: it cannot be read.
    """
    about = os.stat(path)  # opening a pipe would wait for a writer
    if not stat.S_ISREG(about.st_mode):
        raise ImageError("it is not a regular file")
    if about.st_size > MAX_FILE_BYTES:
        raise ImageError(f"the file has more than {MAX_FILE_BYTES:,} bytes, too many for an image")
    with open(path, "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)
