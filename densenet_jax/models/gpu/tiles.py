"""The sizes of the kernels' tiles on each GPU: they must fit into registers and shared memory."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax


class Tile(NamedTuple):
    """How a kernel divides its work.

    Attributes:
      rows: positions of a step.
      channels: input channels of a step or a program; all of them for "3x3 forward".
      warps, stages: of a program; Triton's num_warps and num_stages.
      programs: about how many a kernel starts that accumulates over rows; each walks over a range.
      turned: "1x1 backward" holds its tiles as [channels, rows].  Then sums over rows stay within a
        thread, and a product leaves its result where the next one reads it.
    """

    rows: int
    channels: int
    warps: int
    stages: int
    programs: int = 132
    turned: bool = True


class Hardware(NamedTuple):
    """What tiles depend on.

    Attributes:
      capability: compute capability.
      processors: streaming multiprocessors; as many programs run at once, or twice as many.
      shared: bytes of shared memory of a program.
    """

    capability: float
    processors: int
    shared: int


H200 = Hardware(9.0, 132, 232_448)
_target: list[Hardware] = []


@contextlib.contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Within this context kernels are made for a device that need not be there.

    Args:
      device: of a topology (`jax.experimental.topologies`).
    """
    _target.append(hardware_of(device))
    try:
        yield
    finally:
        _target.pop()


def compiling_elsewhere() -> bool:
    """Returns whether kernels are made for a device that need not be there."""
    return bool(_target)


def hardware_of(device: Any) -> Hardware:
    """Returns what a device says of itself; an H200 for one that is no NVIDIA GPU."""
    try:
        capability = float(device.compute_capability)
        return Hardware(capability, device.core_count, device.shared_memory_per_block_optin)
    except (AttributeError, ValueError):
        return H200


def hardware() -> Hardware:
    """Returns the GPU that kernels are made for: a target, or the first one here."""
    return _target[-1] if _target else hardware_of(jax.local_devices()[0])


def together(width: int) -> int:
    """Returns how many layers one "1x1 backward" kernel serves: two where registers allow it."""
    return 2 if int(hardware().capability) == 9 and width <= 128 else 1


def tile(kernel: str, width: int, growth: int) -> Tile:
    """Returns the tile of a kernel on this GPU: one without spilled registers in its loop.

    `benchmarks/kernel_limits.py` compiles every one of them, and holds the registers and the shared
    memory that they take.  With one stage the taps of the 3x3 kernels are plain loads, which come
    from the processor's own cache after the first tap; asynchronous copies would bypass it.

    Args:
      kernel: one of `stages.KERNELS`.
      width, growth: maps after the first and second convolution of a layer; for "pooled" kernels
        width is that of a transition's output.
    """
    gpu, wide = hardware(), width > 128
    # Warps hold the operands of products in their registers; from Hopper on the matrix units read
    # them in shared memory, but for consumers' Blackwell.
    small = gpu.capability < 9 or gpu.capability >= 12
    if kernel == "1x1 forward":
        found = (64, 64, 2) if wide else (128, 32, 3 if small else 4)
    elif kernel == "3x3 forward":
        rows = 64 if wide or gpu.capability >= 12 else 128
        if 10 <= gpu.capability < 12 and width != 128:
            rows *= 2  # with fewer a register spills before the loop
        found = (rows, width, 1)
    elif kernel == "7x7 pooled forward":
        found = (32 if small else 128, 32, 1)
    elif kernel == "7x7 pooled backward":
        found = (16 if small else 32, 256, 1)
    elif kernel == "1x1 pooled forward":
        found = (64, 32, 2)
    elif kernel == "1x1 pooled backward":
        bits = (width - 1).bit_length()  # registers hold the sums of channels x width
        found = (
            16,
            min(1 << bits - 1, 2**13 >> bits) if small else min(128, max(64, 2**14 >> bits)),
            1,
        )
    elif kernel == "1x1 backward near":
        found = (128, 32, 2)
    elif kernel == "1x1 backward pair":
        found = (16, 128, 2)
    elif kernel == "1x1 backward":
        found = (16, 64 if wide else 128, 2) if small else (32 if wide else 64, 128, 2)
    elif small or growth > 32:
        few = growth < 16 or gpu.capability >= 12
        found = (32 if few else 64, 16, 1)
    else:
        found = (64, 64, 1)
    rows, channels, stages = found
    return Tile(rows, channels, 8, stages, gpu.processors, not (small and wide))
