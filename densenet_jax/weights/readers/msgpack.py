"""A reader for Flax's MessagePack files, a tree of maps with arrays as extension types.

The library `msgpack`, which Flax needs, parses; limits of sizes and counts keep it from allocating
more than a file of weights needs. An array is (shape, name of the element type, bytes).
"""

import io
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_NAME, MAX_TENSORS, BoundedFile

MAX_OBJECTS = 10 * MAX_TENSORS
MAX_MAP = 2048  # entries; memory is reserved for as many as a map claims to have
_ARRAY, _SCALAR = 1, 3  # Flax's extension types
_DTYPES = {
    **{str(np.dtype(code)): np.dtype(code) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8")},
    **{str(np.dtype(code)): np.dtype(code) for code in ("u1", "u2", "u4", "u8", "?")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def read_msgpack(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {"collection/module/leaf": array} of all arrays, in the order of the file."""
    file.charge(file.size)
    objects = 0

    def counted(items: list[Any]) -> list[Any]:
        nonlocal objects
        objects += 1 + len(items)
        if objects > MAX_OBJECTS:
            raise file.fail("it holds too many objects; save the variables alone")
        return items

    def pairs(items: list[Any]) -> dict[Any, Any]:
        counted(items)
        if len(result := dict(items)) < len(items):
            raise file.fail("a map sets a name twice; save the variables again")
        return result

    def extension(code: int, data: bytes) -> object:
        if code not in (_ARRAY, _SCALAR):
            raise file.fail(f"it has the unknown type {code}; save arrays alone")
        return _array(file, data)

    limits: dict[str, int] = {
        "max_str_len": 4 * MAX_NAME,
        "max_bin_len": 0,
        "max_array_len": 16,
        "max_map_len": MAX_MAP,
    }
    try:
        content = msgpack.unpackb(
            file.read(0, file.size),
            ext_hook=extension,
            object_pairs_hook=pairs,
            list_hook=counted,
            max_ext_len=file.size,
            **limits,
        )
    except (ValueError, TypeError, RecursionError) as error:
        if str(error).startswith(file.path):
            raise
        raise file.fail("it is damaged, or not a tree of arrays; save it again") from None
    arrays: dict[str, np.ndarray] = {}
    _collect(file, content, "", arrays)
    return arrays


def _collect(file: BoundedFile, value: Any, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Adds the arrays in a tree of maps under the path of their keys."""
    if len(name) > MAX_NAME:
        raise file.fail("it is nested too deeply, or has too long names; save it again")
    if isinstance(value, dict):
        for key, item in value.items():
            _collect(file, item, f"{name}/{key}" if name else str(key), arrays)
    elif isinstance(value, np.ndarray):
        file.charge(4 * len(name))
        arrays[name] = value


def _array(file: BoundedFile, data: bytes) -> np.ndarray:
    """Returns the array in an extension type."""
    shape, code, content = msgpack.unpackb(
        data, raw=True, max_array_len=16, max_map_len=0, max_str_len=32, max_bin_len=len(data)
    )
    dtype = _DTYPES.get(code.decode() if isinstance(code, bytes) else "")
    if dtype is None or not isinstance(content, bytes):
        raise file.fail("an array has an unknown element type; save it as float32")
    sizes = file.shape("array", shape)
    if int(np.prod(sizes, dtype=object)) * dtype.itemsize != len(content):
        raise file.fail("an array's shape does not fit its bytes; save the file again")
    part = BoundedFile(file.path, io.BytesIO(content), 0, len(content), file.budget)
    return part.array("array", dtype, sizes)
