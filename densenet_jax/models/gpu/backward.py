"""The transposes of BN-ReLU-convolution as GPU kernels.

Each kernel reads its inputs once.  The gradient of the output is completed on load (the part that
comes through the output's moments is linear in the output), the mask of the ReLU is computed again,
the gradient of the source is written or added in place, and the sums for scale, shift and kernel
are taken from the same tiles.  A program walks over a range of rows, so that its gradient of the
kernel stays in registers; the gradients of all programs are added afterwards in a fixed order, so
results repeat to the bit.

`block.plain.backward` computes the same in plain JAX, and explains the arguments.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.arithmetic import arithmetic
from densenet_jax.models.gpu.forward import neighbour
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
    store_matrix,
    store_vector,
    unless_multiple,
    work,
)
from densenet_jax.models.gpu.weights import UNIT, packed


def partition(n: int, tile: tiles.Tile, columns: int) -> tuple[int, int]:
    """Returns how many ranges n rows are cut into, and how many tiles a range has.

    As many as keep the GPU busy, if each is there for `columns` tiles of channels.
    """
    total = ceil_div(n, tile.rows)
    steps = ceil_div(total, max(1, min(total, tile.programs // columns)))
    return ceil_div(total, steps), steps


def step_range(part, steps, n: int, tile: int):
    """Returns the first tile of a range and the one after its last."""
    return part * steps, jnp.minimum((part + 1) * steps, ceil_div(n, tile))


def added(maps, sums, parts: int, layers: int, kernel: int, channels: int):
    """Adds the sums of all ranges up.

    Args:
      maps: what else the kernel made.
      sums: of one range after another, for one layer after another: a kernel's gradient, as many
        numbers as `kernel` says, and those of shift and gain, of so many channels.  What follows
        those of the last is ignored.

    Returns:
      maps, and the gradients of kernels [layers, kernel], of shifts and gains, [layers, channels].
    """
    shape = parts, layers, kernel + 2 * channels
    total = sums[: math.prod(shape)].reshape(shape).sum(0)
    # XLA would put off the sum, and keep the sums of all ranges of all layers until then.
    maps, total = jax.lax.optimization_barrier((maps, total))
    return maps, *jnp.split(total, (kernel, kernel + channels), axis=1)


def complete(d_ref, y_ref, a, b, rows, columns, limits, arithmetic):
    """Loads the gradient of y that its readers made, and adds what its moments made."""
    inside, fill = limits[0], limits[1] is not None  # rows outside become 0 at the end
    d, y = (arithmetic.widen(load(ref, rows, columns, limits, fill)) for ref in (d_ref, y_ref))
    if inside is not None:
        inside = (rows < inside if isinstance(inside, int) else inside)[:, None]
    return arithmetic.narrow(arithmetic.multiply_add(b, y, d + a), d_ref.dtype, inside)


class Reader(NamedTuple):
    """A layer that reads the block's buffer: its first stage, and the gradient of what that made.

    Attributes:
      gain, shift: the normalisation of the channels it reads, [C] each.
      w: [C, D], or `Weights`.
      d_out: what the readers of the stage's output contributed to its gradient, [N, D].
      out: the output, [N, D].
      a, b: the gradient of the output is d_out + a + b * out, [D] each.
    """

    gain: jax.Array
    shift: jax.Array
    w: Any
    d_out: jax.Array
    out: jax.Array
    a: jax.Array
    b: jax.Array


def _conv1x1(*refs, n, d, readers, tile, unit, arithmetic):
    fma, widen, narrow = arithmetic
    number_ref, x_ref, *reader_refs, _, dx_ref, sums_ref = refs
    reader_refs = [Reader(*reader_refs[i::readers]) for i in range(readers)]
    outs = span(0, power_of_2(d))
    row_limit, out_limit = unless_multiple(n, tile.rows), unless_multiple(d, len(outs))

    def place():
        """Returns this program's range and channels, the steps of a range, first, and last."""
        first, last, steps = number_ref[0] * unit, number_ref[1] * unit, number_ref[2]
        columns, _ = divide(last - first + tile.channels - 1, tile.channels)
        part, j = divide(pl.program_id(0), columns)
        return part, span(j * tile.channels, tile.channels), steps, first, last

    part, ins, steps, first, last = place()
    at = first + ins
    turn, axis = (jnp.transpose, 1) if tile.turned else (lambda v: v, 0)
    weights = [
        load_matrix(r.w, number_ref[3 + i] * UNIT, at, outs, d, (last, out_limit))
        for i, r in enumerate(reader_refs)
    ]

    def step(i, sums):
        rows, limits = span(i * tile.rows, tile.rows), (row_limit, last)
        dx, added = 0.0, []
        for r, w, (d_w, d_shift, d_gain) in zip(reader_refs, weights, sums, strict=True):
            # Vectors are read in every step: they are in the cache, and registers are short.
            a, b = load_vector(r.a, outs, out_limit), load_vector(r.b, outs, out_limit)
            gain, shift = (
                jnp.expand_dims(load_vector(v, at, last), axis) for v in (r.gain, r.shift)
            )
            dy = complete(r.d_out, r.out, a, b, rows, outs, (row_limit, out_limit), arithmetic)
            x = widen(turn(load(x_ref, rows, at, limits)))
            y = fma(x, gain, shift)
            u = narrow(y, x_ref.dtype, relu=True)
            d_w += matmul(u, dy, trans_a=not tile.turned)
            du = matmul(w, dy, trans_b=True) if tile.turned else matmul(dy, w, trans_b=True)
            du = jnp.where(y > 0, du, 0)
            dx = fma(du, gain, dx).astype(dx_ref.dtype).astype(jnp.float32)
            added.append((d_w, d_shift + du.sum(axis), d_gain + (du * x).sum(axis)))
        dx = load(dx_ref, rows, at, limits).astype(jnp.float32) + turn(dx)
        store(dx_ref, rows, at, dx, limits)
        return added

    zero = jnp.zeros((tile.channels,), jnp.float32)
    sums = [(jnp.zeros((tile.channels, len(outs)), jnp.float32), zero, zero)] * readers
    sums = jax.lax.fori_loop(*step_range(part, steps, n, tile.rows), step, sums)
    part, ins, steps, first, last = place()  # again: registers are short in the loop
    c = last - first
    end = jnp.where(part * steps < ceil_div(n, tile.rows), c, 0)  # no place beyond the last range
    for i, (d_w, d_shift, d_gain) in enumerate(sums):
        start = (part * readers + i) * c * (d + 2)
        store_matrix(sums_ref, start, ins, outs, d, d_w, (ins < end, out_limit))
        store_vector(sums_ref, start + c * d, ins, d_shift, end)
        store_vector(sums_ref, start + c * d + c, ins, d_gain, end)


def conv1x1(source, readers, d_source, *, within, interpret=False, tile=None):
    """The transposes of `forward.conv1x1` of several layers, for some of the channels they read.

    Programs that share rows run at the same time, so that what each of them reads of the layers'
    outputs comes from the cache but for the first time.

    Args:
      source: buffer [N, C'] that the layers read.
      readers: the layers.
      d_source: buffer like source; the gradients are added to it, in place.
      within: (first, last): the gradients of channels first ... last - 1 are computed.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.

    Returns:
      d_source, and for each layer the gradients of w [last - first, D], shift and gain,
      [last - first].
    """
    (n, channels), d, (first, last) = source.shape, readers[0].w.shape[-1], within
    c, m = last - first, len(readers)
    kernel = "1x1 backward near" if first else "1x1 backward" if m == 1 else "1x1 backward pair"
    tile = tile or tiles.tile(kernel, d, 0)
    columns = ceil_div(c, tile.channels)
    parts, steps = partition(n, tile, columns)
    weights = [packed(r.w, source.dtype) for r in readers]
    starts = [w.start // UNIT for w in weights]
    number, unit = numbers(first, last, counts=(steps, *starts))
    sums = 4 * parts * m * c * (d + 2)
    maps = 3 * n * c * source.dtype.itemsize
    outs = sum(size_in_bytes(r.d_out, r.out) for r in readers)
    readers = [
        r._replace(
            gain=grow(r.gain, channels),
            shift=grow(r.shift, channels),
            w=w.data,
        )
        for r, w in zip(readers, weights, strict=True)
    ]
    parameters = m * c * (8 + d * source.dtype.itemsize)
    with work(
        kernel,
        maps + outs + sums + parameters,
        maps + columns * outs + sums + parts * parameters,
        columns * ceil_div(n, tile.rows),
        4 * n * c * d * m,
    ):
        d_source, sums = _run1x1(
            *(number, source, readers, d_source),
            **{"unit": unit, "tile": tile, "interpret": interpret},
        )
    d_source, d_w, *vectors = added(d_source, sums, parts, m, c * d, c)
    return d_source, list(zip(d_w.reshape(m, c, d), *vectors, strict=True))


@functools.partial(jax.jit, static_argnames=("unit", "tile", "interpret"))
def _run1x1(number, source, readers, d_source, *, unit, tile, interpret):
    """Returns d_source and the sums of every range; programs beyond the last range make none."""
    (n, channels), d, m = source.shape, len(readers[0].a), len(readers)
    programs = max(tile.programs, ceil_div(channels, tile.channels))
    arrays = [array for field in zip(*readers, strict=True) for array in field]
    static = {"n": n, "d": d, "readers": m, "tile": tile, "unit": unit}
    return call(
        named(_conv1x1, **static, arithmetic=arithmetic(interpret)),
        *(number, source, *arrays, d_source),
        grid=programs,
        out=(
            shape(d_source.shape, d_source.dtype),
            shape((programs * m * tile.channels * (d + 2),)),
        ),
        interpret=interpret,
        tile=tile,
        aliases={2 + len(arrays): 0},
    )


def _conv3x3(*refs, n, c, d, image, tile, steps, unit, arithmetic):
    fma, widen, narrow = arithmetic
    number_ref, x_ref, gain_ref, shift_ref, w_ref, d_ref, y_ref, a_ref, b_ref = refs[:9]
    dx_ref, sums_ref = refs[9:]
    offset, weights = number_ref[0] * unit, number_ref[1] * UNIT
    part, j = divide(pl.program_id(0), ceil_div(c, tile.channels))
    ins, outs = span(j * tile.channels, tile.channels), span(0, power_of_2(d))
    row_limit, in_limit = unless_multiple(n, tile.rows), unless_multiple(c, tile.channels)
    out_limit = unless_multiple(d, len(outs))
    inside = None if in_limit is None else ins < in_limit
    gain, shift = load_vector(gain_ref, ins, in_limit), load_vector(shift_ref, ins, in_limit)
    a, b = load_vector(a_ref, outs, out_limit), load_vector(b_ref, outs, out_limit)
    y_limit = out_limit and outs < d

    def step(i, sums):
        *d_w, d_shift, d_gain = sums
        rows = span(i * tile.rows, tile.rows)
        x = widen(load(x_ref, rows, ins, (row_limit, in_limit)))
        y = fma(x, gain, shift)
        u = narrow(y, x_ref.dtype, relu=True)
        du = jnp.zeros((tile.rows, tile.channels), jnp.float32)
        for tap in range(9):
            near, exists = neighbour(rows, tap, *image, n, sign=-1)
            dy = complete(d_ref, y_ref, a, b, near, offset + outs, (exists, y_limit), arithmetic)
            w = load_matrix(w_ref, weights, tap * c + ins, outs, d, (inside, out_limit))
            du += matmul(dy, w, trans_b=True)
            d_w[tap] += matmul(u, dy, trans_a=True)
        du = jnp.where(y > 0, du, 0)
        store(dx_ref, rows, ins, du * gain, (row_limit, in_limit))
        return *d_w, d_shift + du.sum(0), d_gain + (du * x).sum(0)

    zero = jnp.zeros((tile.channels,), jnp.float32)
    d_w = [jnp.zeros((tile.channels, len(outs)), jnp.float32)] * 9
    *d_w, d_shift, d_gain = jax.lax.fori_loop(
        *step_range(part, steps, n, tile.rows), step, (*d_w, zero, zero)
    )
    start = part * c * (9 * d + 2)
    for tap in range(9):
        at = start + tap * c * d
        store_matrix(sums_ref, at, ins, outs, d, d_w[tap], (inside, out_limit))
    store_vector(sums_ref, start + 9 * c * d, ins, d_shift, in_limit)
    store_vector(sums_ref, start + 9 * c * d + c, ins, d_gain, in_limit)


def conv3x3(
    source,
    gain,
    shift,
    w,
    d_out,
    out,
    correction,
    *,
    image,
    offset,
    interpret=False,
    tile=None,
):
    """The transpose of `forward_kernels.conv3x3`.

    Args:
      source, gain, shift, w, image, offset: as there.
      d_out: buffer [N, > offset]: channels offset ... offset + D - 1 have what the readers of the
        output contributed to its gradient.
      out: buffer with the output at the same channels.
      correction: (a, b); the gradient of the output is d_out + a + b * out.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.

    Returns:
      The gradients of source [N, C], w [3, 3, C, D], shift and gain, [C].
    """
    (n, c), d = source.shape, w.shape[3]
    w = packed(w, source.dtype)
    number, unit = numbers(offset, counts=(w.start // UNIT,))
    tile = tile or tiles.tile("3x3 backward", c, d)
    columns, halo = ceil_div(c, tile.channels), 2 * (image[1] + 1)
    parts, _ = partition(n, tile, columns)
    # A range reads the rows around it, too: those of its neighbours, at another time.
    row = 2 * d * out.dtype.itemsize
    sums, steps = 4 * parts * c * (9 * d + 2), columns * ceil_div(n, tile.rows)
    maps, weights = size_in_bytes(source, source), size_in_bytes(gain, shift) + w.size_in_bytes
    with work(
        "3x3 backward",
        maps + weights + (n + parts * halo) * row + sums,
        maps + parts * weights + steps * (tile.rows + halo) * row + sums,
        steps,
        36 * n * c * d,
    ):
        dx, sums = _run3x3(
            *(number, source, gain, shift, w.data, d_out, out, *correction),
            **{"unit": unit, "image": tuple(image), "tile": tile, "interpret": interpret},
        )
    dx, (d_w,), (d_shift,), (d_gain,) = added(dx, sums, parts, 1, 9 * c * d, c)
    return dx, d_w.reshape(3, 3, c, d), d_shift, d_gain


@functools.partial(jax.jit, static_argnames=("unit", "image", "tile", "interpret"))
def _run3x3(number, source, gain, shift, w, d_out, out, a, b, *, unit, image, tile, interpret):
    (n, c), d = source.shape, len(a)
    columns = ceil_div(c, tile.channels)
    parts, steps = partition(n, tile, columns)
    sums = shape((parts * c * (9 * d + 2),))
    static = {"n": n, "c": c, "d": d, "image": image, "tile": tile, "steps": steps, "unit": unit}
    return call(
        named(_conv3x3, **static, arithmetic=arithmetic(interpret)),
        *(number, source, gain, shift, w, d_out, out, a, b),
        grid=parts * columns,
        out=(shape(source.shape, source.dtype), sums),
        interpret=interpret,
        tile=tile,
    )
