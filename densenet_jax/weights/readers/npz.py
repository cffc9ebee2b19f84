"""A reader for NumPy's .npz: a zip archive of arrays, each with a Python literal as its header.

`numpy.load` evaluates the literal and allocates whatever memory it asks for. This module matches
the header with a regular expression instead, which accepts only what `numpy.save` writes for
arrays of numbers.
"""

import math
import re

import numpy as np

from densenet_jax.weights.readers.bounded_file import BFLOAT16, MAX_TENSORS, BoundedFile
from densenet_jax.weights.readers.zip_archive import Member

_HEADER = re.compile(
    r"\{'descr': '([<>|=][a-zA-Z]\d{1,2})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15})?)\), \}\s*"
)


def read_npz(file: BoundedFile, entries: dict[str, Member]) -> dict[str, np.ndarray]:
    """Returns {member name without `.npy`: array} of an archive with the members `entries`."""
    if len(entries) > MAX_TENSORS:
        raise file.fail(f"it holds more than {MAX_TENSORS} tensors; save the weights alone")
    return {
        name.removesuffix(".npy"): _array(member.open(), name.removesuffix(".npy"))
        for name, member in entries.items()
    }


def _array(file: BoundedFile, name: str) -> np.ndarray:
    """Returns the array in an .npy file; error messages call it `name`."""
    if file.size < 12 or file.read(0, 6) != b"\x93NUMPY":
        raise file.fail("it is not an array that numpy.save wrote; save it with numpy.savez", name)
    width = 2 if file.read(6, 1) == b"\1" else 4
    length = int.from_bytes(file.read(8, width), "little")
    begin = 8 + width + length
    text = file.read(8 + width, length).decode("latin-1") if length < 4096 else ""
    match = _HEADER.fullmatch(text)
    dtype = _dtype(match[1]) if match else None
    if match is None or dtype is None:
        raise file.fail(
            "it is not a plain array of numbers (objects and structured types are refused); "
            "save it with numpy.savez as float32",
            name,
        )
    shape = file.shape(name, [int(n) for n in match[3].split(",") if n.strip()])
    if begin + math.prod(shape) * dtype.itemsize != file.size:
        raise file.fail(
            f"its shape {shape} does not fit its {file.size - begin} bytes; "
            "the file is damaged, so download or save it again",
            name,
        )
    stored = shape if match[2] == "False" else shape[::-1]
    array = file.array(name, dtype, stored, begin, big_endian=match[1][0] == ">")
    return array if stored is shape else array.T.copy()


def _dtype(code: str) -> np.dtype | None:
    """Returns the element type of a code such as `<f4`; None: it is not a number or bool."""
    if code[1:] == "V2":
        return BFLOAT16  # NumPy writes bfloat16 as opaque elements of two bytes.
    if code[1] not in "fiub" or int(code[2:]) not in (1, 2, 4, 8):
        return None
    try:
        return np.dtype(code[1:])
    except TypeError:
        return None
