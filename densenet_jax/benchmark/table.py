"""The results of the command `benchmark` as a table for a terminal."""

from typing import Any

from rich.table import Table

from densenet_jax.terminal import Console

PARTS = {
    "step": "training step, batch on the device",
    "loop": "training loop with the data",
    "input_pipeline": "input pipeline alone",
    "inference": "inference, batch on the device",
}
FAST_ENOUGH = 0.05  # share of the time in which steps may wait for data
STEADY = 0.15  # change of the machine's rates that is usual


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
    console.print(pipeline(found))
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
    for note in busy(found):
        console.print(f"WARNING: {note}")


def pipeline(found: dict[str, Any]) -> str:
    """Returns whether the input pipeline keeps up with training, and what helps if it does not.

    Args:
      found: as returned by `measure.benchmark`.
    """
    speeds, wait = found["images_per_second"], found["data_wait"]
    times = speeds["input_pipeline"] / speeds["step"]
    factor = f"{times:.2g}" if times < 10 else f"{times:,.0f}"
    told = f"the input pipeline alone delivers {factor} times the images that the step takes"
    if wait < FAST_ENOUGH:
        return f"data: {told}; in the training loop steps waited for them {wait:.1%} of the time"
    why = "it is too slow" if times < 1 else "reading and computing share this machine's cores"
    return (
        f"data: in the training loop steps waited for images {wait:.1%} of the time: {why} "
        f"({told}). What helps: --config.data.in_memory=True if they fit, "
        "--config.data.workers=N processes, smaller files (docs/data.md)"
    )


def busy(found: dict[str, Any]) -> list[str]:
    """Returns sentences about signs that other programs disturbed the measurements.

    Args:
      found: as returned by `measure.benchmark`.
    """
    machine, notes = found["machine"], []
    if machine["load"] is not None and machine["load"] > max(1.0, machine["cores"] / 4):
        notes.append(
            f"{machine['load']:.1f} programs ran or waited for one of {machine['cores']} cores in "
            "the minute before: measure again on an idle machine."
        )
    if machine["change"] > STEADY:
        notes.append(
            f"the machine's own rates changed by {machine['change']:.0%} during the benchmark: it "
            "was busy, or its clock changed; measure again."
        )
    over = [PARTS[part] for part, share in found["share_of_limit"].items() if share > 1]
    if over:
        notes.append(
            f"more than 100 % of the limit ({'; '.join(over)}) cannot be: the limit was measured "
            "too low, on a busy machine; measure again."
        )
    return notes


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
