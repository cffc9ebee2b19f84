"""BN-ReLU-convolution as GPU kernels that normalise on load and measure on store.

XLA cannot fuse a normalisation into a convolution, nor the sums of its output: it writes and reads
the maps several times.  Here they are read once and written once.  `block.plain.forward` computes
the same in plain JAX, and explains the arguments.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.tools import (
    call,
    ceil_div,
    divide,
    grow,
    load,
    load_vector,
    matmul,
    multiply_add,
    named,
    numbers,
    power_of_2,
    shape,
    size_in_bytes,
    span,
    store,
    store_vector,
    unless_multiple,
    work,
)


def _store_sums(sums_ref, y, pivot_ref, rows, columns, limits, d):
    """Stores one program's sums of y (as rounded for the maps) and of its squares, [2, d].

    Both are about a pivot of each channel, see `statistics.sums`.

    Rows outside the limits do not count.
    """
    y = y.astype(jnp.float32) - load_vector(pivot_ref, columns, limits[1])
    if limits[0] is not None:
        y = jnp.where((rows < limits[0])[:, None], y, 0)
    start = pl.program_id(0) * 2 * d
    store_vector(sums_ref, start, columns, y.sum(0), limits[1])
    store_vector(sums_ref, start + d, columns, (y * y).sum(0), limits[1])


def _conv1x1(*refs, n, d, tile, unit, fma):
    number_ref, x_ref, gain_ref, shift_ref, w_ref, pivot_ref, y_ref, sums_ref = refs
    c = number_ref[0] * unit
    rows, columns = span(pl.program_id(0) * tile.rows, tile.rows), span(0, power_of_2(d))
    limits = unless_multiple(n, tile.rows), unless_multiple(d, len(columns))

    def accumulate(k, y):
        k = span(k * tile.channels, tile.channels)
        x = load(x_ref, rows, k, (limits[0], c)).astype(jnp.float32)
        x = fma(x, load_vector(gain_ref, k, c), load_vector(shift_ref, k, c))
        u = jnp.maximum(x, 0).astype(x_ref.dtype)
        return y + matmul(u, load(w_ref, k, columns, (k < c, limits[1])))

    y = jnp.zeros((tile.rows, len(columns)), jnp.float32)
    steps = divide(c + tile.channels - 1, tile.channels)[0]
    y = jax.lax.fori_loop(0, steps, accumulate, y).astype(y_ref.dtype)
    store(y_ref, rows, columns, y, limits)
    _store_sums(sums_ref, y, pivot_ref, rows, columns, limits, d)


def conv1x1(source, gain, shift, w, pivot, *, interpret=False, tile=None):
    """Returns relu(source[:, :c] * gain + shift) @ w and the sums of it and of its squares.

    Args:
      source: [N, >= c].
      gain, shift: [c] each.
      w: [c, D].
      pivot: of the sums, [D], float32.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.
    """
    (n, channels), (c, d) = source.shape, w.shape
    tile = tile or tiles.tile("1x1 forward", d, 0)
    number, unit = numbers(c)
    programs, width = ceil_div(n, tile.rows), source.dtype.itemsize
    partial_sums, maps = 8 * d * programs, n * (c + d) * width
    gain, shift, w = (grow(v, channels) for v in (gain, shift, w.astype(source.dtype)))
    static = {"unit": unit, "tile": tile, "interpret": interpret}
    with work(
        "1x1 forward",
        maps + c * (8 + d * width) + partial_sums,
        maps + programs * c * d * width,
        programs * ceil_div(c, tile.channels),
        2 * n * c * d,
    ):
        y, sums = _run1x1(number, source, gain, shift, w, pivot, **static)
    return y, *sums.reshape(-1, 2, d).sum(0)


@functools.partial(jax.jit, static_argnames=("unit", "tile", "interpret"))
def _run1x1(number, source, gain, shift, w, pivot, *, unit, tile, interpret):
    n, d = source.shape[0], w.shape[1]
    programs = ceil_div(n, tile.rows)
    return call(
        named(_conv1x1, n=n, d=d, tile=tile, unit=unit, fma=multiply_add(interpret)),
        *(number, source, gain, shift, w, pivot),
        grid=programs,
        out=(shape((n, d), source.dtype), shape((programs * 2 * d,))),
        interpret=interpret,
        tile=tile,
    )


def neighbour(rows, tap, height: int, width: int, n: int, sign: int):
    """Returns the rows of a 3x3 kernel's neighbours of image positions, and whether they exist.

    Tap 3 * i + j of a kernel meets the position i - 1 lines below and j - 1 to the right; with
    sign -1 above and to the left, for the transpose.  Rows that do not exist are clipped.
    """
    line, column = divide(rows, width)
    row = divide(line, height)[1]
    down, right = (sign * (part - 1) for part in divide(tap, 3))
    exists = (row + down >= 0) & (row + down < height) & (rows < n)
    exists &= (column + right >= 0) & (column + right < width)
    return jnp.clip(rows + down * width + right, 0, n - 1), exists


def _conv3x3(*refs, n, c, d, image, tile, unit, fma):
    number_ref, x_ref, gain_ref, shift_ref, w_ref, pivot_ref, _, y_ref, sums_ref = refs
    offset = number_ref[0] * unit
    rows, columns = span(pl.program_id(0) * tile.rows, tile.rows), span(0, power_of_2(d))
    channels = span(0, power_of_2(c))
    limits = unless_multiple(n, tile.rows), unless_multiple(d, len(columns))
    last = unless_multiple(c, len(channels))
    gain, shift = load_vector(gain_ref, channels, last), load_vector(shift_ref, channels, last)
    w_limits = last if last is None else channels < last, limits[1]

    def accumulate(tap, y):
        near, exists = neighbour(rows, tap, *image, n, sign=1)
        x = load(x_ref, near, channels, (exists, last)).astype(jnp.float32)
        u = jnp.where(exists[:, None], jnp.maximum(fma(x, gain, shift), 0), 0).astype(x_ref.dtype)
        return y + matmul(u, load(w_ref, tap * c + channels, columns, w_limits))

    y = jnp.zeros((tile.rows, len(columns)), jnp.float32)
    y = jax.lax.fori_loop(0, 9, accumulate, y).astype(y_ref.dtype)
    store(y_ref, rows, offset + columns, y, (limits[0], limits[1] and columns < d))
    _store_sums(sums_ref, y, pivot_ref, rows, columns, limits, d)


def conv3x3(source, gain, shift, w, into, pivot, *, image, offset, interpret=False, tile=None):
    """Convolves relu(source * gain + shift) and writes the result into channels of a buffer.

    The halo of a tile belongs to its neighbours, which run at the same time: what is read again
    comes from the cache, not from device memory.

    Args:
      source: [N, C], N positions of images of `image` = (height, width).
      gain, shift: [C] each.
      w: [3, 3, C, D].
      into: [N, > offset], updated in place at channels offset ... offset + D - 1.
      pivot: of the sums, [D], float32.
      interpret: see `tools.call`.
      tile: a `Tile`, whose channels do not count; None: that of this GPU.

    Returns:
      into, and the sums of what was written and of its squares, [D] each.
    """
    (n, c), d = source.shape, w.shape[3]
    number, unit = numbers(offset)
    tile = tile or tiles.tile("3x3 forward", c, d)
    w = w.astype(source.dtype).reshape(9 * c, d)
    programs, width = ceil_div(n, tile.rows), source.dtype.itemsize
    inputs, outputs = size_in_bytes(source, gain, shift, w), n * d * into.dtype.itemsize
    halo = 2 * (image[1] + 1) * c * width  # around a tile; the taps of one position are cached
    static = {"unit": unit, "image": tuple(image), "tile": tile, "interpret": interpret}
    with work(
        "3x3 forward",
        inputs + outputs + 8 * d * programs,
        inputs + outputs + programs * (halo + size_in_bytes(w)),
        9 * programs,
        18 * n * c * d,
    ):
        into, sums = _run3x3(number, source, gain, shift, w, pivot, into, **static)
    return into, *sums.reshape(-1, 2, d).sum(0)


@functools.partial(jax.jit, static_argnames=("unit", "image", "tile", "interpret"))
def _run3x3(number, source, gain, shift, w, pivot, into, *, unit, image, tile, interpret):
    (n, c), d = source.shape, w.shape[1]
    programs = ceil_div(n, tile.rows)
    static = {"n": n, "c": c, "d": d, "image": image, "tile": tile, "unit": unit}
    return call(
        named(_conv3x3, **static, fma=multiply_add(interpret)),
        *(number, source, gain, shift, w, pivot, into),
        grid=programs,
        out=(shape(into.shape, into.dtype), shape((programs * 2 * d,))),
        interpret=interpret,
        tile=tile,
        aliases={6: 0},
    )
