"""The safetensors format: eight bytes of header size, a JSON header, the tensors end to end."""

import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from densenet_jax.weights.readers.bounded_file import (
    MAX_NAME,
    MAX_TENSORS,
    BoundedFile,
    WeightsError,
    shown,
)

MAX_HEADER = 4 << 20  # bytes; a thousand tensors take 0.1 MB

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def read_safetensors(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns the tensors in the header's order."""
    data, entries = _layout(file)
    return {
        name: data.array(name, dtype, shape, begin)
        for name, (dtype, shape, begin, _) in entries.items()
    }


def locate_safetensors(file: BoundedFile) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Returns each tensor's element type, shape and first byte in the file; reads the header."""
    data, entries = _layout(file)
    return {
        name: (dtype, shape, data.start + begin)
        for name, (dtype, shape, begin, _) in entries.items()
    }


def _layout(
    file: BoundedFile,
) -> tuple[BoundedFile, dict[str, tuple[np.dtype, tuple[int, ...], int, int]]]:
    """Returns the data, and each tensor's element type, shape, first byte and size in it."""
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > MAX_HEADER:
        raise file.fail(f"its header of {length} bytes exceeds the limit of {MAX_HEADER}")
    header = _parse_header(file, file.read(8, length))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise file.fail(f"it holds more than {MAX_TENSORS} tensors")
    data = file.part(8 + length, file.size - 8 - length)
    entries = {name: _check_entry(data, name, entry) for name, entry in header.items()}
    # The tensors must tile the data: an overlap or a hole is how a file hides something.
    end = 0
    for name, (_, _, begin, size) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise file.fail("its data overlaps another tensor's or leaves a gap", name)
        end = begin + size
    if end != data.size:
        raise file.fail(
            f"its tensors take {end} bytes but {data.size} follow the header; "
            "it is cut short or damaged, download or save it again"
        )
    return data, entries


def _parse_header(file: BoundedFile, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) < len(pairs):
            raise ValueError("a repeated name")
        return result

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if len(str(error)) < 100 else "damaged"
        raise file.fail(f"its header is not valid JSON ({reason})") from None
    if not isinstance(header, dict):
        raise file.fail("its header is not a JSON object")
    return header


def _check_entry(
    data: BoundedFile, name: str, entry: object
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise data.fail("its header entry must be dtype, shape and data_offsets", name)
    code = entry["dtype"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise data.fail(f"unknown element type {shown(code)}; save it as float32", name)
    dtype, shape = _DTYPES[code], data.shape(name, entry["shape"])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        raise data.fail("its data_offsets must be two integers", name)
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= offsets[0] <= data.size or offsets[1] - offsets[0] != size:
        raise data.fail("its data_offsets do not fit its shape and the file", name)
    return dtype, shape, offsets[0], size


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors so that `path` holds either all of them or what it held before.

    Args:
      path: the file; its folder must exist.
      tensors: name -> array, NumPy's or JAX's, of any shape, strides and byte order.
      metadata: texts to keep in the header.

    Raises:
      WeightsError: a name or element type that safetensors cannot hold, or the file cannot be
        written.
    """
    path = Path(path)
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise WeightsError(f"{path}: metadata must map text to text")
        header["__metadata__"] = dict(metadata)
    # Wide elements first, so that every tensor starts at a multiple of its element size.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    end = 0
    for name in order:
        array = arrays[name]
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise WeightsError(
                f"{path}: tensor {shown(name)}: safetensors has no element type {array.dtype}"
            )
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or name == "__metadata__":
            raise WeightsError(f"{path}: {shown(name)} cannot be the name of a tensor")
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                for name in order:
                    array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be written: {error.strerror or error}") from error
