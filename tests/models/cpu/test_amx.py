"""The products by AMX, with its instructions replaced by others where the processor lacks them."""

import pathlib
import subprocess

import jax
import pytest

from densenet_jax.models.cpu import building

HERE = pathlib.Path(__file__).parent
EMULATED = HERE.parents[2] / "benchmarks" / "emulated_amx.h"


def test_products(tmp_path):
    if "avx512_bf16" not in building.processor().split():
        pytest.skip("other instructions of this program need AVX512-BF16")
    program = tmp_path / "products"
    options = ["-std=c++20", "-O1", "-march=cooperlake", "-mamx-tile", "-mamx-bf16", "-DBFLOAT16"]
    headers = ["-include", EMULATED, "-I", building.SOURCES, "-isystem", jax.ffi.include_dir()]
    subprocess.run(["c++", *options, *headers, HERE / "amx.cc", "-o", program], check=True)
    ended = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "0 wrong\n"), ended.stderr
