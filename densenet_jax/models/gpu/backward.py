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

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.forward import neighbour
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
    store_matrix,
    store_vector,
    unless_multiple,
    work,
)


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


def _added(sums, parts: int, kernel: int, channels: int):
    """Adds the sums of all ranges up.

    Args:
      sums: of one range after another: a kernel's gradient, as many numbers as `kernel` says, and
        those of shift and gain, of so many channels.  What follows those of the last is ignored.

    Returns:
      the gradients of kernel [kernel], shift and gain, [channels] each.
    """
    size = kernel + 2 * channels
    total = sums[: parts * size].reshape(parts, size).sum(0)
    return jnp.split(total, (kernel, kernel + channels))


def _complete(d_ref, y_ref, a, b, rows, columns, limits, fma):
    """Loads the gradient of y that its readers made, and adds what its moments made."""
    d = load(d_ref, rows, columns, limits).astype(jnp.float32)
    y = load(y_ref, rows, columns, limits).astype(jnp.float32)
    d = fma(b, y, d + a)
    if limits[0] is not None:
        inside = limits[0] if not isinstance(limits[0], int) else rows < limits[0]
        d = jnp.where(inside[:, None], d, 0)
    return d.astype(d_ref.dtype)


def _conv1x1(*refs, n, d, tile, unit, fma):
    number_ref, x_ref, gain_ref, shift_ref, w_ref, d_ref, y_ref, a_ref, b_ref, _ = refs[:10]
    dx_ref, sums_ref = refs[10:]
    c, steps = number_ref[0] * unit, number_ref[1]
    part, j = divide(pl.program_id(0), divide(c + tile.channels - 1, tile.channels)[0])
    ins, outs = span(j * tile.channels, tile.channels), span(0, power_of_2(d))
    row_limit, out_limit = unless_multiple(n, tile.rows), unless_multiple(d, len(outs))
    w = load(w_ref, ins, outs, (c, out_limit))

    def step(i, sums):
        d_w, d_shift, d_gain = sums
        rows = span(i * tile.rows, tile.rows)
        # Read in every step: they are in the cache, and registers are short.
        a, b = load_vector(a_ref, outs, out_limit), load_vector(b_ref, outs, out_limit)
        gain, shift = load_vector(gain_ref, ins, c), load_vector(shift_ref, ins, c)
        dy = _complete(d_ref, y_ref, a, b, rows, outs, (row_limit, out_limit), fma)
        limits = row_limit, c
        x = load(x_ref, rows, ins, limits)
        u = jnp.maximum(fma(x.astype(jnp.float32), gain, shift), 0).astype(x.dtype)
        du = jnp.where(u > 0, matmul(dy, w, trans_b=True), 0)
        d_shift, d_gain = d_shift + du.sum(0), d_gain + (du * x.astype(jnp.float32)).sum(0)
        dx = fma(du, gain, load(dx_ref, rows, ins, limits).astype(jnp.float32))
        store(dx_ref, rows, ins, dx, limits)
        d_w += matmul(u, dy, trans_a=True)
        return d_w, d_shift, d_gain

    zero = jnp.zeros((tile.channels,), jnp.float32)
    sums = jnp.zeros((tile.channels, len(outs)), jnp.float32), zero, zero
    d_w, d_shift, d_gain = jax.lax.fori_loop(*step_range(part, steps, n, tile.rows), step, sums)
    start = part * c * (d + 2)
    end = jnp.where(part * steps < ceil_div(n, tile.rows), c, 0)  # no place beyond the last range
    store_matrix(sums_ref, start, ins, outs, d, d_w, (ins < end, out_limit))
    store_vector(sums_ref, start + c * d, ins, d_shift, end)
    store_vector(sums_ref, start + c * d + c, ins, d_gain, end)


def conv1x1(
    source, gain, shift, w, d_out, out, correction, d_source, *, interpret=False, tile=None
):
    """The transpose of `forward_kernels.conv1x1`.

    Programs that share rows run at the same time, so that d_out and out, which each of them
    reads, come from the cache but for the first time.

    Args:
      source, gain, shift, w: as there.
      d_out: what the readers of the output contributed to its gradient, [N, D].
      out: the output, [N, D].
      correction: (a, b); the gradient of the output is d_out + a + b * out.
      d_source: [N, >= c], to whose first c channels the source's gradient is added, in place.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.

    Returns:
      d_source, and the gradients of w [c, D], shift and gain, [c].
    """
    (n, channels), (c, d) = source.shape, w.shape
    tile = tile or tiles.tile("1x1 backward", d, 0)
    columns = ceil_div(c, tile.channels)
    parts, steps = partition(n, tile, columns)
    number, unit = numbers(c, steps)
    sums = 4 * parts * c * (d + 2)
    maps, outs = 3 * n * c * source.dtype.itemsize, size_in_bytes(d_out, out)
    gain, shift, w = (grow(v, channels) for v in (gain, shift, w.astype(source.dtype)))
    weights = c * (8 + d * w.dtype.itemsize)
    with work(
        "1x1 backward",
        maps + outs + sums + weights,
        maps + columns * outs + sums + parts * weights,
        columns * ceil_div(n, tile.rows),
        4 * n * c * d,
    ):
        d_source, sums = _run1x1(
            *(number, source, gain, shift, w, d_out, out, *correction, d_source),
            **{"unit": unit, "tile": tile, "interpret": interpret},
        )
    d_w, *vectors = _added(sums, parts, c * d, c)
    return d_source, d_w.reshape(c, d), *vectors


@functools.partial(jax.jit, static_argnames=("unit", "tile", "interpret"))
def _run1x1(number, source, gain, shift, w, d_out, out, a, b, d_source, *, unit, tile, interpret):
    """Returns d_source and the sums of every range; programs beyond the last range make none."""
    (n, channels), d = source.shape, w.shape[1]
    programs = max(tile.programs, ceil_div(channels, tile.channels))
    return call(
        named(_conv1x1, n=n, d=d, tile=tile, unit=unit, fma=multiply_add(interpret)),
        *(number, source, gain, shift, w, d_out, out, a, b, d_source),
        grid=programs,
        out=(
            shape(d_source.shape, d_source.dtype),
            shape((programs * tile.channels * (d + 2),)),
        ),
        interpret=interpret,
        tile=tile,
        aliases={9: 0},
    )


def _conv3x3(*refs, n, c, d, image, tile, steps, unit, fma):
    number_ref, x_ref, gain_ref, shift_ref, w_ref, d_ref, y_ref, a_ref, b_ref = refs[:9]
    dx_ref, sums_ref = refs[9:]
    offset = number_ref[0] * unit
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
        x = load(x_ref, rows, ins, (row_limit, in_limit)).astype(jnp.float32)
        u = jnp.maximum(fma(x, gain, shift), 0)
        u_narrow = u.astype(x_ref.dtype)
        du = jnp.zeros((tile.rows, tile.channels), jnp.float32)
        for tap in range(9):
            near, exists = neighbour(rows, tap, *image, n, sign=-1)
            dy = _complete(d_ref, y_ref, a, b, near, offset + outs, (exists, y_limit), fma)
            w = load(w_ref, tap * c + ins, outs, (inside, out_limit))
            du += matmul(dy, w, trans_b=True)
            d_w[tap] += matmul(u_narrow, dy, trans_a=True)
        du = jnp.where(u > 0, du, 0)
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
    number, unit = numbers(offset)
    tile = tile or tiles.tile("3x3 backward", c, d)
    w = w.astype(source.dtype).reshape(9 * c, d)
    columns, halo = ceil_div(c, tile.channels), 2 * (image[1] + 1)
    parts, _ = partition(n, tile, columns)
    # A range reads the rows around it, too: those of its neighbours, at another time.
    row = 2 * d * out.dtype.itemsize
    sums, steps = 4 * parts * c * (9 * d + 2), columns * ceil_div(n, tile.rows)
    maps, weights = size_in_bytes(source, source), size_in_bytes(gain, shift, w)
    with work(
        "3x3 backward",
        maps + weights + (n + parts * halo) * row + sums,
        maps + parts * weights + steps * (tile.rows + halo) * row + sums,
        steps,
        36 * n * c * d,
    ):
        dx, sums = _run3x3(
            *(number, source, gain, shift, w, d_out, out, *correction),
            **{"unit": unit, "image": tuple(image), "tile": tile, "interpret": interpret},
        )
    d_w, *vectors = _added(sums, parts, 9 * c * d, c)
    return dx, d_w.reshape(3, 3, c, d), *vectors


@functools.partial(jax.jit, static_argnames=("unit", "image", "tile", "interpret"))
def _run3x3(number, source, gain, shift, w, d_out, out, a, b, *, unit, image, tile, interpret):
    (n, c), d = source.shape, w.shape[1]
    columns = ceil_div(c, tile.channels)
    parts, steps = partition(n, tile, columns)
    sums = shape((parts * c * (9 * d + 2),))
    static = {"n": n, "c": c, "d": d, "image": image, "tile": tile, "steps": steps, "unit": unit}
    return call(
        named(_conv3x3, **static, fma=multiply_add(interpret)),
        *(number, source, gain, shift, w, d_out, out, a, b),
        grid=parts * columns,
        out=(shape(source.shape, source.dtype), sums),
        interpret=interpret,
        tile=tile,
    )
