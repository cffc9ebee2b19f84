"""The CPU kernels' libraries that a wheel brings along, for machines without a compiler.

`release/wheels.py` compiles one for each set of instructions in `LEVELS`. A source checkout and the
wheel for all platforms have none; there `building` compiles one.
"""

import os
import pathlib
import platform

from densenet_jax.models.cpu import building

FOLDER = pathlib.Path(__file__).parent / "built"
# {machine: {what the compiler calls the instructions: what Linux calls them}}, the best first.
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
LEVELS = {
    "x86_64": {"x86-64-v4": f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl", "x86-64-v3": _V3},
    "aarch64": {"armv8-a": "asimd"},
}


def name(level: str) -> str:
    """Returns a library's file name, which changes with the sources."""
    return f"kernels-{level}-{building.digest(level, *building.sources())}.so"


def find() -> pathlib.Path | None:
    """Returns the best library for this processor; None if there is none, or if CXX is set.

    CXX names a compiler, so the library is to be compiled for exactly this processor.
    """
    if not FOLDER.is_dir() or "CXX" in os.environ:
        return None
    instructions = building.processor().split()
    for level, needed in LEVELS.get(platform.machine(), {}).items():
        path = FOLDER / name(level)
        if set(needed.split()) <= set(instructions) and path.exists():
            return path
    return None
