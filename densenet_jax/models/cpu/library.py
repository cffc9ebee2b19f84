"""The CPU kernels' library, loaded and registered with XLA, and calls of its functions."""

import contextlib
import ctypes
import functools
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.models.cpu import prebuilt
from densenet_jax.models.cpu.building import NativeError, build, cache_directory

STAGES = ("Forward1x1", "Forward3x3", "Backward1x1", "Backward3x3")
BLOCKS = ("BlockForward", "BlockBackward", "Pack", "BlockEvaluate")
POOLING = ("MaxPool", "MaxPoolBackward", "AveragePool", "AveragePoolBackward")
FUNCTIONS = (*STAGES, *BLOCKS, "Convolve", "ConvolveBackward", *POOLING)


@functools.cache
def available() -> bool:
    """Returns whether the kernels can be called, building them if need be; says once if not."""
    try:
        target("Forward1x1")
    except NativeError as error:
        logging.getLogger(__name__).warning("CPU kernels are off, plain JAX runs: %s", error)
        return False
    return True


def target(function: str) -> str:
    """Returns the name under which XLA knows one of `FUNCTIONS`.

    Raises:
      NativeError: the library cannot be built or loaded.
    """
    return _register()[0][function]


def panel_width() -> int:
    """Returns the columns of a panel of packed weights; it depends on the processor."""
    return _register()[1]


@functools.cache
def _register() -> tuple[dict[str, str], int]:
    path, functions, width = _load()
    # The name holds the source's hash: a compiled program in a cache finds its own or none.
    names = {name: f"densenet_jax_{name}_{path.stem[-16:]}" for name in FUNCTIONS}
    for name, function in functions.items():
        jax.ffi.register_ffi_target(names[name], jax.ffi.pycapsule(function), platform="cpu")
    return names, width


def _load() -> tuple[pathlib.Path, dict[str, Any], int]:
    found = prebuilt.find()
    if found:
        with contextlib.suppress(OSError, AttributeError):  # it needs a newer or another C library
            return found, *_open(found)
    path = build(cache_directory())
    try:
        return path, *_open(path)
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be loaded ({error}); delete it.") from None


def _open(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    library = ctypes.CDLL(str(path))
    return {name: getattr(library, name) for name in FUNCTIONS}, library.PanelWidth()


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the type of a result."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def call(
    function: str,
    arrays: tuple,
    results: tuple,
    aliases: dict[int, int] | None = None,
    **numbers: int | float,
) -> list[jax.Array]:
    """Runs one of `FUNCTIONS`, on arrays as float32.

    Args:
      function: one of `FUNCTIONS`.
      arrays: its arguments.
      results: the types of what it returns, see `array`.
      aliases: {number of an array: number of the result that takes its place in memory}.
      **numbers: further arguments that do not depend on data.
    """
    run = jax.ffi.ffi_call(
        target(function), results, vmap_method="sequential", input_output_aliases=aliases
    )
    # As the library expects them: whole numbers have 64 bits, others are doubles.
    attributes = {
        name: np.int64(number) if isinstance(number, int) else np.float64(number)
        for name, number in numbers.items()
    }
    return list(run(*(array.astype(jnp.float32) for array in arrays), **attributes))


def forget() -> None:
    """Lets the next call look for the library again."""
    available.cache_clear()
    _register.cache_clear()
