"""BN-ReLU-convolution as GPU kernels that normalise on load and measure on store.

XLA cannot fuse a normalisation into a convolution, nor the sums of its output: it writes and reads
the maps several times.  Here they are read once and written once.  `block.plain.forward` computes
the same in plain JAX, and explains the arguments.

Sums lose no digits to a large mean (`statistics.sums`).  A program takes the sum of squares about
its own mean, and the moments of all follow (Chan et al., 1983); but those of a 1x1 stage, which has
no register left for it, take it about a pivot that XLA computes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from densenet_jax.models.block.statistics import Moments, moments_of_sums
from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.arithmetic import arithmetic
from densenet_jax.models.gpu.tools import (
    call,
    ceil_div,
    divide,
    grow,
    load,
    load_matrix,
    load_vector,
    matmul,
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
from densenet_jax.models.gpu.weights import UNIT, packed


def _store_sums(sums_refs, y, start, columns, limits, place, pivot=None):
    """Stores one program's sums of y and of its squares.

    Args:
      sums_refs: where; empty: nowhere.
      y: as rounded for the maps.
      start: the program's first row; its rows outside the limits do not count.
      columns, limits: of y.
      place: from 0 (the sums) or 1 (those of squares) to the indices of the columns' sums.
      pivot: of both sums; None: that of the squares is the mean of these rows.
    """
    if not sums_refs:
        return
    y, count = y.astype(jnp.float32), len(y)
    inside = None if limits[0] is None else (span(start, len(y)) < limits[0])[:, None]
    if inside is not None:
        count = jnp.minimum(limits[0] - start, count)

    def about(y, pivot):
        return y - pivot if inside is None else jnp.where(inside, y - pivot, 0)

    y = about(y, 0.0 if pivot is None else pivot)
    total = y.sum(0)
    y = about(y, total / count) if pivot is None else y
    mask = None if limits[1] is None else columns < limits[1]
    plgpu.store(sums_refs[0].at[place(0)], total, mask=mask)
    plgpu.store(sums_refs[0].at[place(1)], (y * y).sum(0), mask=mask)


def _moments(sums, n: int, rows: int, d: int) -> Moments:
    """Returns the moments of n rows from the sums of all programs, of so many rows each.

    The sums are [2, d, programs], because XLA would transpose them for a sum along the first axis.
    """
    total, squares = sums.reshape(2, d, -1)
    count = jnp.minimum(n - rows * jnp.arange(total.shape[1]), rows).astype(jnp.float32)
    parts = jnp.broadcast_to(count, total.shape), total, squares
    _, total, squares = jax.lax.reduce(parts, (jnp.float32(0),) * 3, _merge, (1,))
    return Moments(total / n, squares / n)


def _merge(a, b):
    """Returns count, sum and squares about the mean of two parts together (Chan et al., 1983)."""
    (n, total, squares), (m, other, others) = a, b
    distance = other / jnp.maximum(m, 1) - total / jnp.maximum(n, 1)
    between = distance * distance * n * m / jnp.maximum(n + m, 1)
    return n + m, total + other, squares + others + between


def _pivot(number_ref, expected_ref, w_ref, pivot_ref, *, d, unit):
    columns, c, weights = span(pl.program_id(0) * 16, 16), number_ref[0] * unit, number_ref[1]
    limit = unless_multiple(d, 16)

    def accumulate(k, total):
        k = span(k * 128, 128)
        w = load_matrix(w_ref, weights * UNIT, k, columns, d, (k < c, limit))
        return total + load_vector(expected_ref, k, c)[:, None] * w.astype(jnp.float32)

    total = jnp.zeros((128, 16), jnp.float32)
    total = jax.lax.fori_loop(0, divide(c + 127, 128)[0], accumulate, total)
    store_vector(pivot_ref, 0, columns, total.sum(0), limit)


def window(rows, height: int, width: int) -> list:
    """Returns the rows of images that are the 2x2 positions of each row of the halved images."""
    line, column = divide(rows, width // 2)
    image, line = divide(line, height // 2)
    first = (image * height + 2 * line) * width + 2 * column
    return [first + down * width + right for down in (0, 1) for right in (0, 1)]


def _conv1x1(*refs, n, d, image, tile, unit, arithmetic):
    fma, widen, narrow = arithmetic
    number_ref, x_ref, gain_ref, shift_ref, w_ref, pivot_ref, y_ref, *sums_refs = refs
    c, width, weights = number_ref[0] * unit, _columns(d), number_ref[1] * UNIT
    part, j = divide(pl.program_id(0), ceil_div(d, width))
    start, columns = part * tile.rows, span(j * width, width)
    rows, limits = (
        span(start, tile.rows),
        (unless_multiple(n, tile.rows), unless_multiple(d, width)),
    )
    inside = None if limits[0] is None else rows < n
    sources = window(rows, *image) if image else [rows]

    def accumulate(k, y):
        k = span(k * tile.channels, tile.channels)
        gain, shift = load_vector(gain_ref, k, c), load_vector(shift_ref, k, c)
        parts = [fma(widen(load(x_ref, at, k, (inside, c))), gain, shift) for at in sources]
        if image:
            u = sum(jnp.maximum(part, 0) for part in parts) / 4
        else:
            (u,) = parts
        w = load_matrix(w_ref, weights, k, columns, d, (k < c, limits[1]))
        return y + matmul(narrow(u, x_ref.dtype, relu=not image), w)

    y = jnp.zeros((tile.rows, width), jnp.float32)
    steps = divide(c + tile.channels - 1, tile.channels)[0]
    y = jax.lax.fori_loop(0, steps, accumulate, y).astype(y_ref.dtype)
    store(y_ref, rows, columns, y, limits)
    if image:
        place, pivot = _by_column(part, columns, n, d, tile), None
    else:
        place, pivot = _by_program(part, columns, d), load_vector(pivot_ref, columns, limits[1])
    _store_sums(sums_refs, y, start, columns, limits, place, pivot)


def _by_column(part, columns, n, d, tile):
    """Returns a place for `_store_sums`: [2, d, programs], as `_moments` takes them."""
    return lambda square: (square * d + columns) * ceil_div(n, tile.rows) + part


def _by_program(part, columns, d):
    """Returns a place for `_store_sums`: [programs, 2, d], for sums too many to be scattered."""
    return lambda square: (2 * part + square) * d + columns


def _columns(d: int) -> int:
    """Returns how many of d columns a program computes."""
    return min(power_of_2(d), 256)


def conv1x1(
    source,
    gain,
    shift,
    w,
    *,
    expected=None,
    image=None,
    room=0,
    measure=True,
    interpret=False,
    tile=None,
):
    """Returns relu(source[:, :c] * gain + shift) @ w, and its moments.

    Args:
      source: [N, >= c].
      gain, shift: [c] each.
      w: [c, D], or `Weights`.
      expected: about the mean of what is multiplied with w, [c]; of no use with `image`.
      image: (height, width): relu(...) is averaged over windows of 2x2 positions; None: it is not.
      room: the result has so many further channels, with any values.
      measure: False: the moments are left out.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.
    """
    (n, channels), (c, d), kernel = source.shape, w.shape[-2:], "1x1 forward"
    if image:
        n, kernel = n // math.prod(image) * (image[0] // 2) * (image[1] // 2), "1x1 pooled forward"
    tile = tile or tiles.tile(kernel, d, 0)
    w = packed(w, source.dtype)
    number, unit = numbers(c, counts=(w.start // UNIT,))
    parts, columns, width = ceil_div(n, tile.rows), ceil_div(d, _columns(d)), source.dtype.itemsize
    read, rest = n * c * width * (4 if image else 1), n * d * width + 8 * d * parts * measure
    gain, shift, pivot = grow(gain, channels), grow(shift, channels), jnp.zeros(d, jnp.float32)
    if expected is not None and measure and not image:
        # Behind a barrier XLA computes the three vectors in one kernel.
        vectors = gain, shift, grow(expected, channels)
        gain, shift, expected = jax.lax.optimization_barrier(vectors)
        with work("1x1 pivot", c * (4 + d * width), c * (4 + d * width), 0, 0):
            pivot = _run_pivot(number, expected, w.data, d=d, unit=unit, interpret=interpret)
    static = {"unit": unit, "tile": tile, "interpret": interpret}
    with work(
        kernel,
        read + rest + c * (8 + d * width),
        columns * read + rest + parts * c * d * width,
        parts * columns * ceil_div(c, tile.channels),
        2 * n * c * d,
    ):
        y, *sums = _run1x1(
            *(number, source, gain, shift, w.data, pivot),
            **{"n": n, "image": image, "room": room, "measure": measure, **static},
        )
    if not measure:
        return (y,)
    if image:
        return y, *_moments(*sums, n, tile.rows, d)
    return y, *moments_of_sums(*sums[0].reshape(-1, 2, d).sum(0), n, pivot)


@functools.partial(
    jax.jit, static_argnames=("n", "image", "room", "measure", "unit", "tile", "interpret")
)
def _run1x1(
    number, source, gain, shift, w, pivot, *, n, image, room, measure, unit, tile, interpret
):
    d = len(pivot)
    parts, static = ceil_div(n, tile.rows), {"n": n, "d": d, "image": image, "tile": tile}
    return call(
        named(_conv1x1, **static, unit=unit, arithmetic=arithmetic(interpret)),
        *(number, source, gain, shift, w, pivot),
        grid=parts * ceil_div(d, _columns(d)),
        out=(shape((n, d + room), source.dtype), *[shape((parts * 2 * d,))] * measure),
        interpret=interpret,
        tile=tile,
    )


@functools.partial(jax.jit, static_argnames=("d", "unit", "interpret"))
def _run_pivot(number, expected, w, *, d, unit, interpret):
    """Returns about the mean of the outputs, [d], from that of what is multiplied with w."""
    return call(
        named(_pivot, d=d, unit=unit),
        *(number, expected, w),
        grid=ceil_div(d, 16),
        out=(shape((d,)),),
        interpret=interpret,
        tile=tiles.Tile(0, 0, 4, 1),
    )[0]


def neighbour(rows, tap, height: int, width: int, n: int, sign: int):
    """Returns the rows of a 3x3 kernel's neighbours of image positions, and whether they exist.

    Tap 3 * i + j of a kernel meets the position i - 1 lines below and j - 1 to the right; with
    sign -1 above and to the left, for the transpose.
    """
    line, column = divide(rows, width)
    row = divide(line, height)[1]
    down, right = (sign * (part - 1) for part in divide(tap, 3))
    exists = (row + down >= 0) & (row + down < height) & (rows < n)
    exists &= (column + right >= 0) & (column + right < width)
    return rows + down * width + right, exists


def _conv3x3(*refs, n, c, d, image, tile, unit, arithmetic):
    fma, widen, narrow = arithmetic
    number_ref, x_ref, gain_ref, shift_ref, w_ref, _, y_ref, *sums_refs = refs
    offset, weights = number_ref[0] * unit, number_ref[1] * UNIT
    start, columns = pl.program_id(0) * tile.rows, span(0, power_of_2(d))
    rows, channels = span(start, tile.rows), span(0, power_of_2(c))
    limits = unless_multiple(n, tile.rows), unless_multiple(d, len(columns))
    last = unless_multiple(c, len(channels))
    gain, shift = load_vector(gain_ref, channels, last), load_vector(shift_ref, channels, last)
    w_limits = last if last is None else channels < last, limits[1]

    def accumulate(tap, y):
        near, exists = neighbour(rows, tap, *image, n, sign=1)
        x = widen(load(x_ref, near, channels, (exists, last), fill=last is not None))
        u = narrow(fma(x, gain, shift), x_ref.dtype, exists[:, None], relu=True)
        w = load_matrix(w_ref, weights, tap * c + channels, columns, d, w_limits)
        return y + matmul(u, w)

    y = jnp.zeros((tile.rows, len(columns)), jnp.float32)
    y = jax.lax.fori_loop(0, 9, accumulate, y).astype(y_ref.dtype)
    store(y_ref, rows, offset + columns, y, (limits[0], limits[1] and columns < d))
    place = _by_column(pl.program_id(0), columns, n, d, tile)
    _store_sums(sums_refs, y, start, columns, limits, place)


def conv3x3(
    source, gain, shift, w, into, *, image, offset, measure=True, interpret=False, tile=None
):
    """Convolves relu(source * gain + shift) and writes the result into channels of a buffer.

    The halo of a tile belongs to its neighbours, which run at the same time: what is read again
    comes from the cache, not from device memory.

    Args:
      source: [N, C], N positions of images of `image` = (height, width).
      gain, shift: [C] each.
      w: [3, 3, C, D], or `Weights`.
      into: [N, > offset], updated in place at channels offset ... offset + D - 1.
      measure: False: the moments are left out.
      interpret: see `tools.call`.
      tile: a `Tile`, whose channels do not count; None: that of this GPU.

    Returns:
      into, and the moments of what was written.
    """
    (n, c), d = source.shape, w.shape[3]
    w = packed(w, source.dtype)
    number, unit = numbers(offset, counts=(w.start // UNIT,))
    tile = tile or tiles.tile("3x3 forward", c, d)
    programs, width = ceil_div(n, tile.rows), source.dtype.itemsize
    inputs = size_in_bytes(source, gain, shift) + w.size_in_bytes
    outputs = n * d * into.dtype.itemsize
    halo = 2 * (image[1] + 1) * c * width  # around a tile; the taps of one position are cached
    static = {"d": d, "image": tuple(image), "measure": measure, "unit": unit}
    with work(
        "3x3 forward",
        inputs + outputs + 8 * d * programs * measure,
        inputs + outputs + programs * (halo + w.size_in_bytes),
        9 * programs,
        18 * n * c * d,
    ):
        into, *sums = _run3x3(
            number, source, gain, shift, w.data, into, tile=tile, interpret=interpret, **static
        )
    return into, *(_moments(*sums, n, tile.rows, d) if measure else ())


@functools.partial(jax.jit, static_argnames=("d", "unit", "image", "measure", "tile", "interpret"))
def _run3x3(number, source, gain, shift, w, into, *, d, unit, image, measure, tile, interpret):
    n, c = source.shape
    programs = ceil_div(n, tile.rows)
    static = {"n": n, "c": c, "d": d, "image": image, "tile": tile, "unit": unit}
    return call(
        named(_conv3x3, **static, arithmetic=arithmetic(interpret)),
        *(number, source, gain, shift, w, into),
        grid=programs,
        out=(shape(into.shape, into.dtype), *[shape((programs * 2 * d,))] * measure),
        interpret=interpret,
        tile=tile,
        aliases={5: 0},
    )
