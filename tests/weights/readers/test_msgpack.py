"""Flax's MessagePack files are read, and hostile ones refused before they take memory."""

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from densenet_jax import weights


def test_flax_variables(tmp_path):
    variables = {
        "params": {"conv0": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}},
        "batch_stats": {"norm0": {"mean": np.ones(3, ml_dtypes.bfloat16), "count": np.int64(7)}},
        "step": 3,
    }
    path = tmp_path / "model.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    found = weights.read(path)
    assert list(found) == [
        "params/conv0/kernel",
        "batch_stats/norm0/mean",
        "batch_stats/norm0/count",
    ]
    assert np.array_equal(found["params/conv0/kernel"], variables["params"]["conv0"]["kernel"])
    assert found["batch_stats/norm0/mean"].dtype == ml_dtypes.bfloat16
    assert found["batch_stats/norm0/count"] == 7


def array(shape, code, content):
    return msgpack.ExtType(1, msgpack.packb((shape, code, content)))


@pytest.mark.parametrize(
    "value",
    [
        array((1 << 40,), "float32", bytes(4)),
        array((-1,), "float32", b""),
        array((1,), "object", bytes(8)),
        array((2,), "float32", bytes(4)),
        msgpack.ExtType(2, b"abc"),
        msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff"),
        b"bytes",
        "x" * 10_000,
    ],
)
def test_damaged_values(refused, value):
    refused(msgpack.packb({"x": value}))


@pytest.mark.parametrize(
    "content",
    [
        b"\x81\xa1x" + b"\xdd\xff\xff\xff\xff" * 500,  # lists that claim billions of items
        b"\x81\xa1x" + b"\xdf\x00\xff\xff\xff" * 500,  # and maps
        b"\x81\xa1x" * 5_000 + b"\xc0",
        b"\x81\xa1x" + b"\x9f" + (b"\x9f" + b"\x90" * 15) * 15,
        b"\x82\xa1x\x01\xa1x\x02",
        b"\x81\x01\x02",
        b"\x81",
    ],
)
def test_hostile_structures(refused, content):
    refused(content, memory=20e6)


def test_many_small_objects(refused):
    lists = (b"\x9f" + b"\x90" * 15) * 2**15
    tree = b"\xde\x07\xff" + b"".join(b"\xa4%04d" % i + b"\x90" for i in range(2047))
    refused(b"\x82\xa1a" + b"\x9f" * 3 + lists, memory=40e6)
    refused(b"\x8f" + b"".join(b"\xa1%c" % (97 + i) + tree for i in range(15)), memory=40e6)
