"""safetensors: agreement with the reference library in both directions, and invalid headers."""

import json
import os
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from densenet_jax import weights

TYPES = (
    *("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
)


def arrays_of_every_type():
    arrays = {np.dtype(t).name: np.array([[0, 1, 1], [0, 1, 0]]).astype(t) for t in TYPES}
    arrays["scalar"] = np.array(2.5)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    return arrays


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype.newbyteorder("=")
        assert actual[name].shape == array.shape
        np.testing.assert_array_equal(actual[name], array)


def test_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = arrays_of_every_type()
    arrays["transposed"] = np.arange(6.0).reshape(2, 3).T
    arrays["strided"] = np.arange(12.0)[::-3]
    arrays["big_endian"] = np.arange(3, dtype=">f4")
    weights.write_safetensors(path, arrays, metadata={"format": "pt"})
    assert_same(weights.read(path), arrays)


def test_the_reference_library_reads_what_is_written(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = arrays_of_every_type()
    for name in ("float8_e4m3fn", "float8_e5m2"):
        del arrays[name]  # The reference library writes them, but cannot read them.
    weights.write_safetensors(path, arrays, metadata={"made": "by us"})
    assert_same(safetensors.numpy.load_file(path), arrays)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"made": "by us"}
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    for name, array in arrays.items():
        assert header[name]["data_offsets"][0] % array.dtype.itemsize == 0


def test_what_the_reference_library_writes_is_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = arrays_of_every_type()
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    assert_same(weights.read(path), arrays)


def test_jax_arrays_are_written(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.write_safetensors(path, {"x": jnp.arange(3, dtype=jnp.bfloat16)})
    assert weights.read(path)["x"].tolist() == [0, 1, 2]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    weights.write_safetensors(path, {"x": np.ones(2)})
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(weights.WeightsError, match=r"weights\.safetensors: .*No space left"):
        weights.write_safetensors(path, {"x": np.zeros(2)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"x": np.array([None])}, None, "tensor 'x': safetensors has no element type object"),
        ({"x": np.array(["text"])}, None, "no element type"),
        ({"x": np.ones(1, complex)}, None, "no element type complex128"),
        ({"__metadata__": np.ones(1)}, None, "cannot be the name"),
        ({"": np.ones(1)}, None, "cannot be the name"),
        ({3: np.ones(1)}, None, "cannot be the name"),
        ({"x": np.ones(1)}, {"epoch": 3}, "metadata"),
    ],
)
def test_invalid_tensors_are_not_written(tmp_path, tensors, metadata, words):
    with pytest.raises(weights.WeightsError, match=words):
        weights.write_safetensors(tmp_path / "weights.safetensors", tensors, metadata)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(weights.WeightsError, match="cannot be written: No such file"):
        weights.write_safetensors(tmp_path / "nowhere" / "x.safetensors", {"x": np.ones(1)})


def encoded(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin=0, end=16, shape=(4,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encoded({"x": entry()}, length=1 << 63), "header of"),
        (encoded({"x": entry()}, length=(1 << 64) - 1), "header of"),
        (encoded({"x": entry()}, length=100_000), "cut short"),
        (encoded({"x": entry()})[:-1], "cut short"),
        (encoded({"x": entry()})[:20], "cut short"),
        (encoded({"x": entry()}, bytes(17)), "cut short or damaged"),
        (encoded({"x": entry(0, 8, (2,)), "y": entry(4, 16, (3,))}), "overlap"),
        (encoded({"x": entry(), "y": entry()}), "overlap"),
        (encoded({"x": entry(0, 4, (1,)), "y": entry(8, 16, (2,))}), "gap"),
        (encoded({"x": entry(4, 20)}), "leave a gap"),
        (encoded({"x": entry(40, 56)}), "data_offsets"),
        (encoded({"x": entry(-16, 0)}), "data_offsets"),
        (encoded({"x": entry(16, 0)}), "data_offsets"),
        (encoded({"x": entry(0, 1 << 70, (1 << 68,))}), "sizes that are negative"),
        (encoded({"x": entry(shape=(-4,))}), "sizes that are negative"),
        (encoded({"x": entry(shape=(4.0,))}), "sizes that are negative"),
        (encoded({"x": entry(shape=(1 << 31, 1 << 33))}), "too large for any memory"),
        (encoded({"x": entry(shape=(1 << 47, 1 << 47, 0))}), "too large for any memory"),
        (encoded({"x": entry(shape=[1] * 99)}), "dimensions"),
        (encoded({"x": {**entry(), "shape": 4}}), "dimensions"),
        (encoded({"x": {**entry(), "data_offsets": [0, 16, 16]}}), "two integers"),
        (encoded({"x": {**entry(), "data_offsets": [False, 16]}}), "two integers"),
        (encoded({"x": entry(dtype="F31")}), "element type 'F31'"),
        (encoded({"x": entry(dtype=["F32"])}), "element type"),
        (encoded({"x": entry(more=1)}), "header entry"),
        (encoded({"x": None}), "header entry"),
        (encoded(b'{"x": NaN}'), "JSON"),
        (encoded(b'{"x": 1, "x": 2}'), "repeated name"),
        (encoded(b'{"x": {"dtype": "F32"'), "JSON"),
        (encoded(b'{"x": "\xff"}'), "JSON"),
        (encoded(b'{"x": ' + b"[" * 100_000), "JSON"),
        (encoded(b'{"x": ' + b"9" * 10_000 + b"}"), "JSON"),
        (encoded(b"{}", b""), "no tensors"),
        (encoded({"\ud800": entry()}), "not printable"),
        (encoded({str(i): entry(0, 0, (0,)) for i in range(20_001)}, b""), "more than 20000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_headers_are_refused(refused, content, words):
    refused(content, words)
