"""The results of the command `benchmark` as a table for a terminal."""

from typing import Any

from rich.table import Table

from densenet_jax.terminal import Console

PARTS = {
    "step": "training step, batch already on the device",
    "loop": "training loop with the data",
    "input_pipeline": "input pipeline alone",
    "inference": "inference, batch already on the device",
}


def show(found: dict[str, Any]) -> None:
    """Prints the measurements, memory use and limits.

    Args:
      found: as returned by `measure.benchmark`.
    """
    console = Console(soft_wrap=True)
    kinds = sorted(set(found["devices"]))
    on = ", ".join(f"{found['devices'].count(kind)} x {kind}" for kind in kinds)
    size = found["image_size"]
    console.print(
        f"{found['model']}, {size}x{size}, batch {found['batch_size']}, {found['dtype']}, on {on}"
    )
    table = Table("", "images/s", "of the limit", "compiled in", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for part, about in PARTS.items():
        share, seconds = found["share_of_limit"].get(part), found["compile_seconds"].get(part)
        table.add_row(
            about,
            f"{found['images_per_second'][part]:,.1f}",
            "" if share is None else f"{share:.0%}",
            "" if seconds is None else f"{seconds:.1f} s",
        )
    console.print(table)
    for sizes, trial in found["gpu_kernels"].items():
        console.print(gpu_kernels(sizes, trial))
    console.print(
        f"in the training loop, steps waited for data {found['data_wait']:.1%} of the time"
    )
    memory, limits = found["memory"], found["limits"]
    parts = {
        "temporaries of a step": memory["temporaries"],
        "state and batch": memory["arguments"],
        "device peak": memory["device_peak"],
        "process peak": memory["host_peak"],
    }
    sizes = [f"{name} {value / 2**20:,.0f} MiB" for name, value in parts.items() if value]
    console.print(f"memory: {', '.join(sizes)}")
    best = limits["images_per_second"]
    console.print(
        f"limit: {best['step']:,.1f} images/s in training, {best['inference']:,.1f} in inference, "
        f"from rates measured here for a device: {limits['flops_per_second'] / 1e9:,.0f} GFLOP/s "
        f"in a matrix product, {limits['bytes_per_second'] / 1e9:,.1f} GB/s in a copy"
    )


def gpu_kernels(sizes: str, trial: dict[str, Any]) -> str:
    """Returns what a trial of the GPU kernels found, as a line.

    Args:
      sizes, trial: an item of `implementations.trials`.
    """
    times = {name: f"{1e3 * seconds:.2f} ms" for name, seconds in trial["seconds"].items()}
    parts = [f"plain JAX replaces {kernel}: {why}" for kernel, why in trial["faults"].items()]
    if times:
        parts.insert(
            0, f"the gradient of a small block takes {times['gpu']}, plain {times['plain']}"
        )
    return f"fused kernels ({sizes}): {'; '.join(parts)}"
