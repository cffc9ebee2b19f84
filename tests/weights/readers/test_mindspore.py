"""MindSpore's checkpoints: element types, and messages with invalid lengths and shapes."""

import ml_dtypes
import numpy as np
import pytest

from densenet_jax import weights


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(name, shape, kind, data):
    dims = b"".join(field(1, n) for n in shape)
    tensor = dims + field(2, kind.encode()) + field(3, data)
    return field(1, field(1, name.encode()) + field(2, tensor))


def test_element_types(tmp_path):
    arrays = {
        "Float32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "Float16": np.arange(6, dtype=np.float16),
        "BFloat16": np.arange(6).astype(ml_dtypes.bfloat16),
        "Float64": np.arange(6.0),
        "Int64": np.arange(2),
        "Int32": np.arange(2, dtype=np.int32),
        "Bool": np.array([True, False]),
    }
    path = tmp_path / "weights.ckpt"
    content = b"".join(entry(k, a.shape, k, a.tobytes()) for k, a in arrays.items())
    content += entry("scalar", (0,), "Float32", np.float32(3).tobytes())
    path.write_bytes(content + b"crc_num" + bytes(10))
    result = weights.read(path)
    assert list(result) == [*arrays, "scalar"]
    for name, array in arrays.items():
        assert result[name].dtype == array.dtype
        np.testing.assert_array_equal(result[name], array)
    assert result["scalar"].shape == ()
    assert result["scalar"] == 3


GOOD = entry("weight", (2, 2), "Float32", bytes(16))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD[:-1], "cut short"),
        (GOOD[:5], "cut short"),
        (GOOD + GOOD, "twice"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "cut short"),
        (b"\x0a" + b"\xff" * 20, "MindSpore"),
        (b"\x0a" + varint((1 << 64) - 1) + GOOD, "cut short"),
        (b"\x0b\x00", "none of the formats"),
        (GOOD + b"\x0d\0\0\0\0", "MindSpore"),
        (GOOD + field(1, 5), "MindSpore"),
        (field(1, field(1, b"weight")), "not a tensor"),
        (field(1, field(1, 7) + field(2, b"")), "not a tensor"),
        (field(1, field(1, b"weight") + field(2, b"")), "'weight'"),
        (entry("weight", (2, 3), "Float32", bytes(16)), "does not fit"),
        (entry("weight", (1 << 40, 1 << 40), "Float32", bytes(16)), "too large for any memory"),
        (entry("weight", ((1 << 64) - 4,), "Float32", bytes(16)), "sizes that are negative"),
        (entry("weight", (1,) * 65, "Float32", bytes(4)), "more than 64 fields"),
        (entry("weight", (1,) * 9, "Float32", bytes(4)), "dimensions"),
        (entry("weight", (2, 2), "String", bytes(16)), "element type"),
        (entry("w" * 600, (2, 2), "Float32", bytes(16)), "limit is 512"),
        (
            field(
                1,
                field(1, b"w")
                + field(2, field(1, b"\1" * 99) + field(2, b"Bool") + field(3, b"\1")),
            ),
            "dimensions",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_messages_are_refused(refused, content, words):
    refused(content, words)
