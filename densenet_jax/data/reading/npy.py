"""NumPy files of images, [H, W] or [H, W, C] of any numbers; only the numbers are read."""

import io

import numpy as np
from numpy.lib import format as npy

from densenet_jax.data.reading.limits import MAX_CHANNELS, ImageError, check_size

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096  # bytes
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def is_npy(data: bytes) -> bool:
    """Returns whether data begin as a NumPy file does."""
    return data[:6] == MAGIC


def decode(data: bytes) -> np.ndarray:
    """Returns the array of a NumPy file as [H, W, C], without copying it.

    Raises:
      ImageError: it is damaged, holds no numbers, or has another shape.
    """
    file = io.BytesIO(data[: MAX_HEADER + 16])
    try:
        version = npy.read_magic(file)
        shape, fortran, dtype = _READERS[version](file, max_header_size=MAX_HEADER)
    except Exception as e:  # the header is a Python literal, which can be damaged in many ways
        raise ImageError("not a readable image: the header of the NumPy file is damaged") from e
    whole = all(type(n) is int and n > 0 for n in shape)
    if dtype.hasobject or dtype.kind not in "uif" or len(shape) not in (2, 3) or not whole:
        raise ImageError(f"the NumPy file has {dtype} {list(shape)}; it must be [H, W, C] numbers")
    height, width, channels = (*shape, 1)[:3]
    if channels > MAX_CHANNELS:
        raise ImageError(
            f"the NumPy file has {list(shape)}: {channels:,} channels are more than "
            f"{MAX_CHANNELS:,}; store it as [H, W, C]"
        )
    count, have = height * width * channels, (len(data) - file.tell()) // dtype.itemsize
    if count != have:
        raise ImageError(
            f"not a readable image: the NumPy file promises {count:,} numbers and has {have:,}"
        )
    check_size(height, width, len(data), 4 * channels + 8)
    array = np.frombuffer(data, dtype, count, file.tell())
    return array.reshape((height, width, channels), order="F" if fortran else "C")
