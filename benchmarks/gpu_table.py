"""Predicts the training step of DenseNet-121 on every GPU of `targets`, as a Markdown table.

    python benchmarks/gpu_table.py

The work of the fused kernels follows from the tiles of each GPU, and their instructions from
kernel_limits.json.  All other kernels are those of the step that was compiled for an H200
(hlo_traffic.json).  The model is that of hlo_traffic.py.  Nothing is compiled or measured.
"""

import contextlib
import json
import pathlib
import sys
import types
import unittest.mock
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import hlo_traffic  # noqa: E402
import targets  # noqa: E402

CASE = "densenet121, 224 pixels, batch 256, train, gpu"
BATCH, STEM, GROWTH, WIDTH = 256, 64, 32, 128
SIDE, BLOCKS = 56, (6, 12, 24, 16)  # height and width of the first maps; layers


def fused(gpu: targets.Gpu) -> hlo_traffic.Traffic:
    """Returns the work of all fused kernels of a step on a GPU."""
    import jax
    import jax.numpy as jnp

    from densenet_jax.models.block import gradient, statistics
    from densenet_jax.models.gpu import (
        backward,
        backward_pooled,
        backward_stem,
        forward,
        tiles,
        trial,
    )

    found = hlo_traffic.Traffic()

    def record(kernel: str, memory: int, cached: int, steps: int, operations: int) -> Any:
        name = f"{kernel} {len(found.kernels)}"
        key = kernel.replace(" ", "_")
        found.kernels.append((memory, name))
        found.fused[name] = hlo_traffic.Fused(key, memory, cached, steps, operations)
        return jax.named_scope(key)

    def step(x: jax.Array, transition: Any, layers: list) -> Any:
        settings, before = gradient.Settings(1e-5, 0.0, "gpu"), (x, statistics.moments(x))
        args = *before, transition, layers, None
        results, (middle,) = gradient.forward(*args, settings)
        if transition is None:
            before = None
        residuals = *results, middle, before, transition, layers, None
        return results[0], gradient.backward(settings, residuals, results)

    device = types.SimpleNamespace(
        compute_capability=gpu.capability,
        core_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared,
    )
    with contextlib.ExitStack() as stack:
        for module in (forward, backward, backward_pooled, backward_stem):
            stack.enter_context(unittest.mock.patch.object(module, "work", record))
        stack.enter_context(tiles.compiling_for(device))
        images, convolved, x = (
            jax.ShapeDtypeStruct((BATCH, side, side, c), jnp.bfloat16)
            for side, c in ((4 * SIDE, 3), (2 * SIDE, STEM), (SIDE, STEM))
        )
        where, vector = jax.ShapeDtypeStruct(x.shape, jnp.uint8), jnp.zeros(STEM)
        arguments = images, convolved, vector, vector, where, x, (vector, vector)
        # A function of its own: JAX would not trace the same one again for the next GPU.
        jax.eval_shape(lambda *a: backward_stem.stem(*a), *arguments)
        c, transition = STEM, None
        for layers in BLOCKS:
            block = [trial.layer(c + GROWTH * i, WIDTH, GROWTH) for i in range(layers)]
            x, _ = jax.eval_shape(step, x, transition, block)
            read, c = x.shape[3], x.shape[3] // 2
            norm = {"scale": jnp.ones(read), "bias": jnp.zeros(read)}
            transition = norm, jnp.zeros((1, 1, read, c))
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
