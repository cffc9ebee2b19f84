"""GPUs to compile for without having one: each description is an H200's with other numbers.

The numbers are the vendor's: processors, memory of a block, cache, clock and bandwidth.  What XLA
knows beyond them (rates of single instructions) is the H200's, and decides little.
"""

import dataclasses
import pathlib
import re
from typing import Any

H200 = pathlib.Path(__file__).parent / "h200.txtpb"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as far as the kernels' speed depends on it.

    Attributes:
      name: as the driver reports it.
      capability: compute capability.
      processors: streaming multiprocessors.
      shared: bytes of shared memory that one program may use.
      l2: bytes of its cache.
      clock: GHz under load.
      bandwidth: of its memory, bytes per second.
      memory: bytes.
      tensor: multiplications and additions of its matrix units in bfloat16, FLOP per second, dense.
    """

    name: str
    capability: str
    processors: int
    shared: int
    l2: int
    clock: float
    bandwidth: float
    memory: int
    tensor: float


SMALL, LARGE = 101_376, 232_448  # shared memory of a program: graphics cards; Hopper and newer
_MB, _GB = 2**20, 2**30
_TABLE = """
a100     8.0  108 166912  40 1.41 2040  80  312 NVIDIA A100-SXM4-80GB
a10      8.6   72 101376   6 1.69  600  24  125 NVIDIA A10
rtx3090  8.6   82 101376   6 1.70  936  24   71 NVIDIA GeForce RTX 3090
l4       8.9   58 101376  48 2.04  300  24  121 NVIDIA L4
rtx4090  8.9  128 101376  72 2.52 1008  24  165 NVIDIA GeForce RTX 4090
rtx5090 12.0  170 101376  96 2.41 1790  32  209 NVIDIA GeForce RTX 5090
h100pcie 9.0  114 232448  50 1.75 2000  80  756 NVIDIA H100 PCIe
h200     9.0  132 232448  50 1.83 4800 141  989 NVIDIA H200
gh200    9.0  132 232448  50 1.83 4000  96  989 NVIDIA GH200 480GB
b200    10.0  148 232448 126 1.92 8000 180 2250 NVIDIA B200
b300    10.3  148 232448 126 1.92 8000 270 2250 NVIDIA B300
t4       7.5   40  65536   4 1.35  320  15   65 Tesla T4
"""  # key, capability, processors, shared bytes, MB of L2, GHz, GB/s, GB, TFLOP/s, name


def _gpu(line: str) -> tuple[str, Gpu]:
    key, capability, processors, shared, l2, clock, rate, memory, tensor, name = line.split(
        maxsplit=9
    )
    sizes = (int(processors), int(shared), int(l2) * _MB)
    speeds = (float(clock), 1e9 * float(rate), int(memory) * _GB, 1e12 * float(tensor))
    return key, Gpu(name, capability, *sizes, *speeds)


GPUS = dict(map(_gpu, _TABLE.strip().splitlines()))
# JAX looks up the capability of a described GPU by its name, and does not have every name.
_NAMES = {"8.6": "NVIDIA A10", "12.0": "NVIDIA RTX PRO 6000"}
KERNELS_RUN_ON = tuple(key for key in GPUS if key != "t4")


def mesh(name: str, devices: int = 1) -> Any:
    """Returns a mesh of described GPUs along `data`.

    Args:
      name: in `GPUS`.
      devices: their number.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{devices}", target_config=description(GPUS[name])
    )
    return jax.sharding.Mesh(np.array(topology.devices), ("data",))


def description(gpu: Gpu) -> str:
    """Returns a GPU in the form that XLA compiles for, a GpuTargetConfigProto as text."""
    text = H200.read_text(encoding="utf-8")
    if gpu.capability == "9.0" and gpu.processors == 132:
        return text
    major, minor = gpu.capability.split(".")
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major in ("9", "10") else ""
    numbers = {
        "shared_memory_per_core": gpu.shared + 1024,
        "core_count": gpu.processors,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory,
        "shared_memory_per_block_optin": gpu.shared,
        "threads_per_core_limit": {"8.0": 2048, "7.5": 1024}.get(
            gpu.capability, 2048 if gpu.shared == LARGE else 1536
        ),
    }
    for key, value in numbers.items():
        text = re.sub(rf"^  {key}: .*$", f"  {key}: {value}", text, flags=re.M)
    text = re.sub(
        r"cuda_compute_capability \{.*\}",
        f"cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}",
        text,
    )
    text = text.replace("NVIDIA H200 141GB HBM3e", _NAMES.get(gpu.capability, gpu.name))
    return text.replace("9.0a", gpu.capability + ("a" if accelerated else ""))
