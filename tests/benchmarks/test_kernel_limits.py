"""The tiles of every GPU are those that were compiled, and fit."""

import json
import pathlib
import sys
import types

import pytest

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.stages import KERNELS

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
STORED = json.loads((BENCHMARKS / "kernel_limits.json").read_text())


@pytest.fixture(scope="module")
def gpus():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import targets
    finally:
        sys.path.remove(str(BENCHMARKS))
    return targets


def test_every_gpu_was_compiled_for(gpus):
    assert STORED.keys() == {gpus.GPUS[name].capability for name in gpus.KERNELS_RUN_ON}
    for capability, rows in STORED.items():
        compiled = {key.split(", ")[0] for key in rows}
        # Hopper also has kernels for pairs of layers.
        pairs = {"1x1 backward pair", "1x1 backward near"} if capability == "9.0" else set()
        assert compiled == {*KERNELS} | pairs


@pytest.mark.parametrize("capability", STORED)
def test_tiles_fit(gpus, capability):
    gpu = min((g for g in gpus.GPUS.values() if g.capability == capability), key=lambda g: g.shared)
    device = types.SimpleNamespace(
        compute_capability=gpu.capability,
        core_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared,
    )
    for key, row in STORED[capability].items():
        kernel, width, growth = key.split(", ")
        with tiles.compiling_for(device):
            tile = tiles.tile(kernel, int(width.split()[-1]), int(growth.split()[-1]))
        assert list(tile[:4]) == row["tile"], f"run benchmarks/kernel_limits.py: {gpu.name}, {key}"
        assert tile.programs == gpu.processors
        assert row["spilled_bytes"] == 0, key
        assert row["shared_bytes"] <= gpu.shared
        assert row["registers"] * 32 * tile.warps <= 65536


def test_without_a_gpu_kernels_are_made_for_an_h200():
    assert tiles.hardware() == tiles.H200
    assert not tiles.compiling_elsewhere()


def test_descriptions_name_their_gpu(gpus):
    text = gpus.description(gpus.GPUS["l4"])
    assert "core_count: 58\n" in text
    assert "cuda_compute_capability { major: 8 minor: 9  }" in text
    assert "H200" not in text
