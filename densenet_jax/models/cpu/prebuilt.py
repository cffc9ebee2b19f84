"""The CPU kernels' libraries that a wheel brings along, for machines without a compiler.

`release/wheels.py` compiles one for each set of instructions in `LEVELS`; where these multiply in
bfloat16, it is the library that does so. A source checkout and the wheel for all platforms have
none; there `building` compiles one.
"""

import os
import pathlib
import platform

from densenet_jax.models.cpu import building

FOLDER = pathlib.Path(__file__).parent / "built"
# {machine: {what the compiler calls the instructions: what Linux calls them}}, the best first.
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
_V4 = f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl"
BFLOAT16 = "avx512_bf16"
_BFLOAT16 = f"{_V4} avx512_vnni {BFLOAT16}"
_AMX = (
    f"{_BFLOAT16} amx_tile amx_bf16 avx512_fp16 avx512ifma avx512vbmi avx512_vbmi2 avx512_bitalg "
    "avx512_vpopcntdq avx_vnni gfni vaes vpclmulqdq"
)
LEVELS = {
    "x86_64": {
        "sapphirerapids": _AMX,
        "cooperlake": _BFLOAT16,
        "x86-64-v4": _V4,
        "x86-64-v3": _V3,
    },
    "aarch64": {"armv8-a": "asimd"},
}


def name(level: str) -> str:
    """Returns a library's file name, which changes with the sources."""
    return f"kernels-{level}-{building.digest(level, *building.sources())}.so"


def products(instructions: str) -> str:
    """Returns the type of products of the library for instructions, as Linux calls them."""
    return "bfloat16" if BFLOAT16 in instructions.split() else "float32"


def find(wanted: str = "float32") -> pathlib.Path | None:
    """Returns the best library for this processor; None if there is none, or if CXX is set.

    CXX names a compiler, so the library is to be compiled for exactly this processor.

    Args:
      wanted: type of its products, see `building.PRODUCTS`.
    """
    if not FOLDER.is_dir() or "CXX" in os.environ:
        return None
    instructions = building.processor().split()
    for level, needed in LEVELS.get(platform.machine(), {}).items():
        path = FOLDER / name(level)
        fits = products(needed) == wanted and set(needed.split()) <= set(instructions)
        if fits and path.exists():
            return path
    return None
