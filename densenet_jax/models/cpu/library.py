"""The CPU kernels' libraries, loaded and registered with XLA, and calls of their functions.

There are two, which have the same functions: one rounds the operands of products to bfloat16.
"""

import contextlib
import ctypes
import functools
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.models.cpu import prebuilt
from densenet_jax.models.cpu.building import NativeError, build, cache_directory, processor

STAGES = ("Forward1x1", "Forward3x3", "Backward1x1", "Backward3x3")
BLOCKS = ("BlockForward", "BlockBackward", "Pack", "BlockEvaluate")
POOLING = ("MaxPool", "MaxPoolBackward", "AveragePool", "AveragePoolBackward")
FUNCTIONS = (*STAGES, *BLOCKS, "Convolve", "ConvolveBackward", *POOLING)


class Library(NamedTuple):
    """A library that is loaded.

    Attributes:
      path: of the file.
      functions: {name in `FUNCTIONS`: function}.
      panel_width: columns of a panel of packed weights; it depends on the processor.
      multiplies_bfloat16: whether its products are the processor's own instruction for bfloat16.
    """

    path: pathlib.Path
    functions: dict[str, Any]
    panel_width: int
    multiplies_bfloat16: bool

    def target(self, function: str) -> str:
        """Returns the name under which XLA knows a function."""
        # It holds the source's hash: a compiled program in a cache finds its own or none.
        return f"densenet_jax_{function}_{self.path.stem[-16:]}"


@functools.cache
def available(products: str = "float32") -> bool:
    """Returns whether the kernels can be called, building them if need be; says once if not.

    Args:
      products: type of the operands of products, one of `building.PRODUCTS`.
    """
    try:
        _register(products)
    except NativeError as error:
        logging.getLogger(__name__).warning("CPU kernels are off, plain JAX runs: %s", error)
        return False
    return True


@functools.cache
def has_bfloat16() -> bool:
    """Returns whether this processor multiplies in bfloat16, and the library lets it."""
    has = prebuilt.BFLOAT16 in processor().split() and available("bfloat16")
    return has and _register("bfloat16").multiplies_bfloat16


def panel_width(products: str = "float32") -> int:
    """Returns the columns of a panel of packed weights; it depends on the processor."""
    return _register(products).panel_width


@functools.cache
def _register(products: str) -> Library:
    library = _load(products)
    for name, function in library.functions.items():
        capsule = jax.ffi.pycapsule(function)
        jax.ffi.register_ffi_target(library.target(name), capsule, platform="cpu")
    return library


def _load(products: str) -> Library:
    found = prebuilt.find(products)
    if found:
        with contextlib.suppress(OSError, AttributeError):  # it needs a newer or another C library
            return _open(found)
    path = build(cache_directory(), products)
    try:
        return _open(path)
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be loaded ({error}); delete it.") from None


def _open(path: pathlib.Path) -> Library:
    library = ctypes.CDLL(str(path))
    functions = {name: getattr(library, name) for name in FUNCTIONS}
    return Library(path, functions, library.PanelWidth(), bool(library.MultipliesBfloat16()))


def array(*shape: int, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    """Returns the type of a result."""
    return jax.ShapeDtypeStruct(shape, dtype)


def call(
    function: str,
    arrays: tuple,
    results: tuple,
    aliases: dict[int, int] | None = None,
    products: str = "float32",
    **numbers: int | float,
) -> list[jax.Array]:
    """Runs one of `FUNCTIONS`, on arrays as float32; packed weights (uint32) stay as they are.

    Args:
      function: one of `FUNCTIONS`.
      arrays: its arguments.
      results: the types of what it returns, see `array`.
      aliases: {number of an array: number of the result that takes its place in memory}.
      products: one of `building.PRODUCTS`.
      **numbers: further arguments that do not depend on data.
    """
    run = jax.ffi.ffi_call(
        _register(products).target(function),
        results,
        vmap_method="sequential",
        input_output_aliases=aliases,
    )
    # As the library expects them: whole numbers have 64 bits, others are doubles.
    attributes = {
        name: np.int64(number) if isinstance(number, int) else np.float64(number)
        for name, number in numbers.items()
    }
    floats = (v if v.dtype == jnp.uint32 else v.astype(jnp.float32) for v in arrays)
    return list(run(*floats, **attributes))


def forget() -> None:
    """Lets the next call look for the library again."""
    for function in (available, has_bfloat16, _register):
        function.cache_clear()
