"""Predicts the training step of DenseNet-121 on every GPU of `targets`, as a Markdown table.

    python benchmarks/gpu_table.py

The work of the fused kernels follows from the tiles of each GPU, and their instructions from
kernel_limits.json.  All other kernels are those of the step that was compiled for an H200
(hlo_traffic.json).  The model is that of hlo_traffic.py.  Nothing is compiled or measured.
"""

import json
import pathlib
import sys
import types
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import hlo_traffic  # noqa: E402
import targets  # noqa: E402

CASE = "densenet121, 224 pixels, batch 256, train, gpu"
BATCH, STEM, GROWTH, WIDTH = 256, 64, 32, 128
BLOCKS = ((56, 6), (28, 12), (14, 24), (7, 16))  # height and width of the maps, layers


def fused(gpu: targets.Gpu) -> hlo_traffic.Traffic:
    """Returns the work of all fused kernels of a step on a GPU."""
    import jax
    import jax.numpy as jnp

    from densenet_jax.models.block import gradient, statistics
    from densenet_jax.models.gpu import backward, forward, tiles, trial

    found = hlo_traffic.Traffic()

    def record(kernel: str, memory: int, cached: int, steps: int, operations: int) -> Any:
        name = f"{kernel} {len(found.kernels)}"
        key = kernel.replace(" ", "_")
        found.kernels.append((memory, name))
        found.fused[name] = hlo_traffic.Fused(key, memory, cached, steps, operations)
        return jax.named_scope(key)

    def step(x: jax.Array, layers: list) -> Any:
        settings = gradient.Settings(1e-5, 0.0, "gpu")
        results, (middle,) = gradient.forward(x, statistics.moments(x), layers, None, settings)
        return gradient.backward(settings, (*results, middle, layers, None), results)

    device = types.SimpleNamespace(
        compute_capability=gpu.capability,
        core_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared,
    )
    works = forward.work, backward.work
    forward.work = backward.work = record
    try:
        with tiles.compiling_for(device):
            c = STEM
            for side, layers in BLOCKS:
                x = jax.ShapeDtypeStruct((BATCH, side, side, c), jnp.bfloat16)
                block = [trial.layer(c + GROWTH * i, WIDTH, GROWTH) for i in range(layers)]
                jax.eval_shape(step, x, block)
                c = (c + GROWTH * layers) // 2
    finally:
        forward.work, backward.work = works
    return found


def row(key: str, stored: dict[str, Any]) -> str:
    """Returns the line of a GPU.

    Args:
      key: in `targets.GPUS`.
      stored: figures of the compiled step.
    """
    gpu = targets.GPUS[key]
    traffic = fused(gpu)
    parts = traffic.seconds(gpu, hlo_traffic.loop_instructions(key))
    other = stored["other_bytes"] / (hlo_traffic.SHARE * gpu.bandwidth)
    other += stored["other_kernels"] * hlo_traffic.LAUNCH
    total = {p: sum(r[p] for r in parts.values()) for p in ("memory", "l2", "issue", "matrix")}
    seconds = sum(r["time"] for r in parts.values()) + other
    bound = max(total, key=lambda part: total[part])
    moved = (traffic_bytes(traffic) + stored["other_bytes"]) / 1e9
    columns = [f"{1e3 * total[part]:.1f}" for part in total] + [f"{1e3 * other:.1f}"]
    columns += [f"{1e3 * seconds:.1f}", bound, f"{BATCH / seconds:,.0f}"]
    return f"| {gpu.name} | {moved:.1f} | {' | '.join(columns)} |"


def traffic_bytes(traffic: hlo_traffic.Traffic) -> int:
    """Returns the bytes of device memory of all kernels."""
    return sum(size for size, _ in traffic.kernels)


def main() -> None:
    stored = json.loads((HERE / "hlo_traffic.json").read_text())[CASE]
    print(
        "| GPU | GB moved | memory | L2 | issue | matrix units | others | ms | bound | images/s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|---:|")
    for key in targets.KERNELS_RUN_ON:
        print(row(key, stored))


if __name__ == "__main__":
    main()
