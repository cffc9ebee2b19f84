"""A reader for MindSpore's checkpoints: a protocol buffer message of named tensors.

message Checkpoint { repeated Value value = 1; }
message Value { string tag = 1; TensorProto tensor = 2; }
message TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_NAME, MAX_RANK, MAX_TENSORS, BoundedFile

_DTYPES = {
    "Float64": np.dtype("<f8"),
    "Float32": np.dtype("<f4"),
    "Float16": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Int64": np.dtype("<i8"),
    "Int32": np.dtype("<i4"),
    "Int16": np.dtype("<i2"),
    "Int8": np.dtype("i1"),
    "UInt64": np.dtype("<u8"),
    "UInt32": np.dtype("<u4"),
    "UInt16": np.dtype("<u2"),
    "UInt8": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_VARINT, _BYTES = 0, 2
MAX_FIELDS = 64  # in the entry of one tensor


def read_mindspore(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {name: array} of all tensors, with the names and the order in the file."""
    if file.size > 17 and file.read(file.size - 17, 7) == b"crc_num":
        file = file.part(0, file.size - 17)  # The end that save_checkpoint(crc_check=True) adds.
    arrays: dict[str, np.ndarray] = {}
    for field, value in _fields(file, MAX_TENSORS):
        if field != 1 or not isinstance(value, BoundedFile):
            raise file.fail("the file is not a MindSpore checkpoint or is damaged; save it again")
        parts = dict(_fields(value, MAX_FIELDS))
        tag, tensor = parts.get(1), parts.get(2)
        if not isinstance(tag, BoundedFile) or not isinstance(tensor, BoundedFile):
            raise file.fail("one of its entries is not a tensor; save the parameters alone")
        name = _text(tag)
        if name in arrays:
            raise file.fail("it appears twice; save the checkpoint again", name)
        arrays[name] = _tensor(tensor, name)
    return arrays


def _tensor(file: BoundedFile, name: str) -> np.ndarray:
    """Returns the array in a TensorProto message; error messages call it `name`."""
    shape: list[int] = []
    dtype = content = None
    for field, value in _fields(file, MAX_FIELDS):
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 1 and isinstance(value, BoundedFile):
            position = 0
            while position < value.size and len(shape) <= MAX_RANK:
                size, position = _varint(value, position)
                shape.append(size)
        elif field == 2 and isinstance(value, BoundedFile):
            dtype = _DTYPES.get(_text(value))
        elif field == 3 and isinstance(value, BoundedFile):
            content = value
    if dtype is None or content is None:
        raise file.fail(
            "its element type is unknown or its data are missing; save it again as float32", name
        )
    if shape == [0] and content.size == dtype.itemsize:
        shape = []  # MindSpore writes the shape of a scalar as [0].
    checked = file.shape(name, shape)
    if int(np.prod(checked, dtype=object)) * dtype.itemsize != content.size:
        raise file.fail(
            f"its shape {checked} does not fit its {content.size} bytes; "
            "the file is damaged, so save it again",
            name,
        )
    return content.array(name, dtype, checked)


def _fields(file: BoundedFile, limit: int) -> Iterator[tuple[int, int | BoundedFile]]:
    """Yields (number, value) of each field of a message: an integer, or the bytes of the field.

    Raises:
      WeightsError: the message is damaged or has more than `limit` fields.
    """
    position = count = 0
    while position < file.size:
        count += 1
        if count > limit:
            raise file.fail(
                f"one of its messages has more than {limit} fields; save the parameters alone"
            )
        key, position = _varint(file, position)
        number, position = _varint(file, position)
        if key & 7 == _VARINT:
            yield key >> 3, number
        elif key & 7 == _BYTES:
            yield key >> 3, file.part(position, number)
            position += number
        else:
            raise file.fail("the file is not a MindSpore checkpoint or is damaged; save it again")


def _varint(file: BoundedFile, position: int) -> tuple[int, int]:
    """Returns the integer at `position`, of seven bits per byte, and the position after it."""
    result = 0
    for i, byte in enumerate(file.read(position, min(10, file.size - position))):
        result |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return result, position + i + 1
    raise file.fail("the file is not a MindSpore checkpoint or is damaged; save it again")


def _text(file: BoundedFile) -> str:
    """Returns the text in a field."""
    if file.size > MAX_NAME:
        raise file.fail(f"it has a name of {file.size} bytes, but the limit is {MAX_NAME}")
    return file.read(0, file.size).decode("utf-8", "backslashreplace")
