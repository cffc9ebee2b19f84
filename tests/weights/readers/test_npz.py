"""NumPy's archives: arrays of numbers are read, and no header is evaluated."""

import ml_dtypes
import numpy as np
import pytest

from densenet_jax import weights
from tests.weights.zip_writer import npy, npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_round_trip(tmp_path, save):
    arrays = {
        "conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "big_half": np.arange(3, dtype=">f2"),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.int8),
        "flags": np.array([True, False]),
        "half": np.arange(3, dtype=np.float16),
        "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
    }
    save(tmp_path / "weights.npz", **arrays)
    result = weights.read(tmp_path / "weights.npz")
    assert result.keys() == arrays.keys()
    for name, array in arrays.items():
        assert result[name].dtype == array.dtype.newbyteorder("=")
        assert result[name].flags.c_contiguous
        np.testing.assert_array_equal(result[name], array)
        assert result[name].shape == array.shape


def test_objects_are_refused(refused):
    content = npz({"x.npy": npy(np.array([{}, None], dtype=object))})
    refused(content, "tensor 'x'", "objects")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n",
        "{'descr': '<U4', 'fortran_order': False, 'shape': (2,), }\n",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999999), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 0), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1, " * 99 + "), }\n",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'x': 1}\n",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (2,), }\n",
        "{'descr': '<b8', 'fortran_order': False, 'shape': (2,), }\n",
        "{'descr': '<f16', 'fortran_order': False, 'shape': (1,), }\n",
        "__import__('os').system('true')\n",
        "(" * 4000,
        "[" * 50_000,
        "",
    ],
)
def test_invalid_headers_are_refused(refused, header):
    refused(npz({"x.npy": npy(np.zeros(2), header.encode())}), "tensor 'x'")
