"""Code shared by the GPU kernels: masked loads and stores, normalisation on load, and the call.

The kernels are written in Pallas and compiled by Triton.  They see feature maps as matrices
[positions, channels], positions being batch, height and width in order, and address them by row
and column.  The sizes of tiles are powers of two, and masks exclude what lies outside the matrix.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def power_of_2(n: int) -> int:
    """Returns the smallest power of two that is at least n, and at least 16, a matrix unit's."""
    return max(16, 1 << (n - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def divide(a, b):
    """Returns quotient and remainder of a >= 0 (the operators' rounding costs more, for a < 0)."""
    if isinstance(a, int) and isinstance(b, int):
        return divmod(a, b)
    b = jnp.asarray(b, a.dtype)
    return lax.div(a, jnp.broadcast_to(b, a.shape)), lax.rem(a, jnp.broadcast_to(b, a.shape))


def span(start, size: int) -> jax.Array:
    """Returns the indices start, ..., start + size - 1."""
    return start + jnp.arange(size, dtype=jnp.int32)


def _mask(rows, columns, limits):
    """Returns which elements of a tile lie inside; None: all do, as far as `limits` can tell."""
    mask = None
    for index, limit, axis in ((rows, limits[0], 1), (columns, limits[1], 0)):
        if limit is not None:
            inside = limit if jnp.ndim(limit) else index < limit
            inside = jnp.expand_dims(inside, axis)
            mask = inside if mask is None else mask & inside
    return None if mask is None else jnp.broadcast_to(mask, (len(rows), len(columns)))


def load(ref, rows, columns, limits=(None, None), fill=True):
    """Loads ref[rows, columns].

    Args:
      ref, rows, columns: what.
      limits: of rows and columns: a size, a mask of the rows, or None.
      fill: 0 outside the limits; False: any values, for which no instruction is needed.
    """
    at = ref.at[rows[:, None], columns[None, :]]
    return _load(at, _mask(rows, columns, limits), fill)


def store(ref, rows, columns, value, limits=(None, None)):
    """Stores a tile at ref[rows, columns], but for what is outside the limits."""
    at = ref.at[rows[:, None], columns[None, :]]
    plgpu.store(at, value.astype(ref.dtype), mask=_mask(rows, columns, limits))


def load_vector(ref, indices, limit=None):
    """Loads ref[indices], 0 from limit on, as float32."""
    mask = None if limit is None else indices < limit
    return _load(ref.at[indices], mask).astype(jnp.float32)


def load_matrix(ref, start, rows, columns, width, limits=(None, None)):
    """Loads a tile of a matrix of so many columns that begins at ref[start], see `load`."""
    at = ref.at[start + rows[:, None] * width + columns[None, :]]
    return _load(at, _mask(rows, columns, limits))


def _load(at, mask, fill=True):
    return plgpu.load(at, mask=mask, other=None if mask is None or not fill else 0)


def store_matrix(ref, start, rows, columns, width, value, limits=(None, None)):
    """Stores a tile of a matrix of so many columns that begins at ref[start], see `store`."""
    at = ref.at[start + rows[:, None] * width + columns[None, :]]
    plgpu.store(at, value, mask=_mask(rows, columns, limits))


def store_vector(ref, start, indices, value, limit=None):
    """Stores value at ref[start + indices], but for indices from limit on."""
    mask = None if limit is None else indices < limit
    plgpu.store(ref.at[start + indices], value, mask=mask)


def numbers(*channels: int, counts: tuple[int, ...] = ()) -> tuple[jax.Array, int]:
    """Returns channels' numbers and counts as an argument for kernels, and the channels' unit.

    With numbers as arguments, and not constants, layers that differ in nothing else share one
    compiled kernel.  Channels are handed over as multiples of a power of two, their unit, so that
    the compiler knows the alignment: only then it loads 16 bytes at a time.
    """
    unit = math.gcd(*channels, 32)
    return jnp.array([*(channel // unit for channel in channels), *counts], jnp.int32), unit


def unless_multiple(limit: int, tile: int) -> int | None:
    """Returns limit, or None if tiles end there anyway and no mask is needed."""
    return limit if limit % tile else None


def matmul(a, b, **transposed):
    """Returns a @ b, or with trans_a or trans_b the product of transposes, in float32."""
    return plgpu.dot(a, b, **transposed).astype(jnp.float32)


def call(kernel, *arrays, grid, out, interpret, tile, aliases=None):
    """Runs a kernel for every program of the grid; arrays and results lie in device memory whole.

    Args:
      kernel: takes a reference for each array and each result.
      grid: number of programs.
      out: shapes of the results (jax.ShapeDtypeStruct).
      interpret: run as plain JAX, on any backend.
      tile: a `Tile`, whose warps and stages count here.
      aliases: which array becomes which result, in place.
    """
    params = {}
    if not interpret:
        # Blocks of one element, all at the origin: kernels compute addresses from there.  Blocks as
        # large as the arrays would be the same, but for the sizes, which the compiled kernel would
        # then depend on.
        params["in_specs"], params["out_specs"] = _origins(arrays), _origins(out)
        params["compiler_params"] = plgpu.CompilerParams(
            num_warps=tile.warps, num_stages=tile.stages
        )
    kernel_call = pl.pallas_call(
        kernel,
        grid=(grid,),
        out_shape=out,
        input_output_aliases=aliases or {},
        interpret=interpret,
        **params,
    )
    return kernel_call(*arrays)


def work(kernel: str, memory: int, cache: int, steps: int, operations: int):
    """Returns the scope for a kernel, whose name says what the kernel does.

    `benchmarks/hlo_traffic.py` finds the numbers in the scope's name.  The scope is no part of the
    kernel, nor of the function that is compiled for it: layers share those, but not the numbers.

    Args:
      kernel: one of `stages.KERNELS`.
      memory: bytes that it reads and writes of device memory.
      cache: bytes that its programs read and write through the GPU's cache (L2).
      steps: how often the loops of all programs run.
      operations: multiplications and additions in its products.
    """
    name = kernel.replace(" ", "_")
    return jax.named_scope(
        f"{name}_moves_{memory}_bytes_{cache}_cached_{steps}_steps_{operations}_operations"
    )


def grow(x: jax.Array, size: int) -> jax.Array:
    """Returns x with zeros appended along its first axis, up to a size."""
    return jnp.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))


def _origins(arrays) -> tuple:
    return tuple(
        pl.BlockSpec((1,) * len(a.shape), lambda _, a=a: (0,) * len(a.shape)) for a in arrays
    )


def size_in_bytes(*arrays) -> int:
    """Returns how much arrays or shapes of arrays take."""
    return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)


def shape(dims, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def named(kernel, **static):
    """Returns kernel with its static arguments, still under its own name."""
    return functools.wraps(kernel)(functools.partial(kernel, **static))
