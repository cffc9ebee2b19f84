"""Reads and writes safetensors: eight bytes of header size, a JSON header, then the tensors."""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from densenet_jax.atomic_files import replacing
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
    """Returns {name: array} of all tensors, in the order of the header."""
    data, entries = _layout(file)
    return {
        name: data.array(name, dtype, shape, begin)
        for name, (dtype, shape, begin, _) in entries.items()
    }


def locate_safetensors(file: BoundedFile) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Returns {name: (element type, shape, first byte in the file)}, from the header alone."""
    data, entries = _layout(file)
    return {
        name: (dtype, shape, data.start + begin)
        for name, (dtype, shape, begin, _) in entries.items()
    }


def _layout(
    file: BoundedFile,
) -> tuple[BoundedFile, dict[str, tuple[np.dtype, tuple[int, ...], int, int]]]:
    """Returns the data and {name: (element type, shape, first byte in the data, bytes)}."""
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > MAX_HEADER:
        raise file.fail(
            f"its header of {length} bytes exceeds the limit of {MAX_HEADER}; save it again"
        )
    header = _parse_header(file, file.read(8, length))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise file.fail(f"it holds more than {MAX_TENSORS} tensors; save the weights alone")
    data = file.part(8 + length, file.size - 8 - length)
    entries = {name: _check_entry(data, name, entry) for name, entry in header.items()}
    # The tensors must cover the data exactly: overlaps and gaps could hide other content.
    end = 0
    for name, (_, _, begin, size) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise file.fail(
                "its data overlap those of another tensor or leave a gap; save the file again", name
            )
        end = begin + size
    if end != data.size:
        raise file.fail(
            f"its tensors take {end} bytes, but {data.size} follow the header; "
            "the file is cut short or damaged, so download or save it again"
        )
    return data, entries


def _parse_header(file: BoundedFile, text: bytes) -> dict[str, Any]:
    """Returns the JSON object in the header; NaN, infinity and repeated names are errors."""

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
        raise file.fail(f"its header is not valid JSON ({reason}); save it again") from None
    if not isinstance(header, dict):
        raise file.fail("its header is not a JSON object; save the file again")
    return header


def _check_entry(
    data: BoundedFile, name: str, entry: object
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns the element type, shape, first byte and size that a header entry gives."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise data.fail(
            "its header entry must consist of dtype, shape and data_offsets; save it again", name
        )
    code = entry["dtype"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise data.fail(f"it has the unknown element type {shown(code)}; save it as float32", name)
    dtype, shape = _DTYPES[code], data.shape(name, entry["shape"])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        raise data.fail("its data_offsets must be two integers; save it again", name)
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= offsets[0] <= data.size or offsets[1] - offsets[0] != size:
        raise data.fail("its data_offsets do not fit its shape and the file; save it again", name)
    return dtype, shape, offsets[0], size


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors to a safetensors file; if that fails, an existing file stays unchanged.

    Args:
      path: the file; its folder must exist.
      tensors: {name: array}, with NumPy or JAX arrays of any shape, strides and byte order.
      metadata: {key: text} to store in the header.

    Raises:
      WeightsError: safetensors cannot hold one of the names or element types, or the file cannot
        be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise WeightsError(
                f"{path}: metadata must map text to text; convert the values with str()"
            )
        header["__metadata__"] = dict(metadata)
    # Wide elements come first, so that every tensor starts at a multiple of its element size.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    end = 0
    for name in order:
        array = arrays[name]
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise WeightsError(
                f"{path}: tensor {shown(name)}: safetensors has no element type {array.dtype}; "
                "convert it to float32"
            )
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or name == "__metadata__":
            raise WeightsError(
                f"{path}: {shown(name)} cannot be the name of a tensor; use a text of at most "
                f"{MAX_NAME} characters other than __metadata__"
            )
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with replacing(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise WeightsError(
            f"{path}: the file cannot be written: {error.strerror or error}"
        ) from error
