"""The stem of ImageNet networks in evaluation as one GPU kernel: convolution, norm, ReLU, pooling.

The convolution's result is four times as large as the stem's.  Here it stays in registers.  Windows
of the pooling overlap: a program walks down its columns of images and keeps the maxima of the line
that two windows share; every second column of the convolution is computed twice.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.arithmetic import arithmetic
from densenet_jax.models.gpu.tools import (
    call,
    ceil_div,
    divide,
    load,
    load_vector,
    matmul,
    named,
    power_of_2,
    shape,
    size_in_bytes,
    span,
    store,
    unless_multiple,
    work,
)

SIZE = 7  # of the kernel, whose stride is 2
WINDOW = 12  # pixels from which the columns of a pooling window are computed, the first unused
LINES = 8  # of the result, that a program computes


def halved(image: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width after the convolution, or after the pooling, of an image."""
    return (image[0] + 1) // 2, (image[1] + 1) // 2


def columns(d: int) -> int:
    """Returns how many of d columns a program computes."""
    return min(power_of_2(d), 64)


def _stem(x_ref, gain_ref, shift_ref, w_ref, y_ref, *, images, c, d, tile, arithmetic):
    n, height, width = images
    convolved = halved((height, width))
    lines, across = halved(convolved)
    program, j = divide(pl.program_id(0), ceil_div(d, columns(d)))
    program, part = divide(program, ceil_div(lines, LINES))
    outs, rows = span(j * columns(d), columns(d)), span(program * tile.rows, tile.rows)
    row_limit, out_limit = unless_multiple(n * across, tile.rows), unless_multiple(d, columns(d))
    gain, shift = load_vector(gain_ref, outs, out_limit), load_vector(shift_ref, outs, out_limit)
    w_limit = out_limit and outs < d
    number, column = divide(rows, across)
    left = 4 * c * column - (WINDOW // 2) * c  # of the window, in numbers of a line

    def line(row):
        """Returns the maxima of three columns of a line of the convolution, for each row."""

        def accumulate(k, sums):
            k = span(k * tile.channels, tile.channels)
            i, at = divide(k, WINDOW * c)
            pixel, at = 2 * row - SIZE // 2 + i, left[:, None] + at[None, :]
            inside = ((pixel >= 0) & (pixel < height) & (i < SIZE))[None, :]
            inside &= (at >= 0) & (at < width * c)
            if row_limit is not None:
                inside &= (rows < row_limit)[:, None]
            at += (number * (height * width * c))[:, None] + (pixel * (width * c))[None, :]
            x = plgpu.load(x_ref.at[at], mask=inside, other=0)
            return [
                total + matmul(x, load(w_ref, k, tap * d + outs, (None, w_limit)))
                for tap, total in enumerate(sums)
            ]

        sums = [jnp.zeros((tile.rows, len(outs)), jnp.float32)] * 3
        sums = lax.fori_loop(0, ceil_div(SIZE * WINDOW * c, tile.channels), accumulate, sums)
        largest = jnp.zeros((tile.rows, len(outs)), jnp.float32)
        for tap, y in enumerate(sums):
            at = 2 * column + tap - 1
            exists = (at >= 0) & (at < convolved[1]) & (row >= 0) & (row < convolved[0])
            y = arithmetic.multiply_add(y.astype(x_ref.dtype).astype(jnp.float32), gain, shift)
            largest = jnp.maximum(largest, jnp.where(exists[:, None], y, 0))
        return largest

    def step(p, above):
        def next_line(s, found):
            below = line(2 * p + s)
            return jnp.maximum(found[0], below), below

        largest, below = lax.fori_loop(0, 2, next_line, (above, above))
        store(
            y_ref,
            (number * lines + p) * across + column,
            outs,
            largest,
            (row_limit and rows < row_limit, out_limit),
        )
        return below

    first = part * LINES
    lax.fori_loop(first, jnp.minimum(first + LINES, lines), step, line(2 * first - 1))


def stem(x, gain, shift, w, *, room=0, interpret=False, tile=None):
    """Returns the maxima of relu(convolution of x * gain + shift) over windows of 3x3 positions.

    Convolution and maxima have stride 2, and padding on every side.

    Args:
      x: [B, H, W, C].
      gain, shift: [D] each.
      w: [7, 7, C, D].
      room: the result, [B, H', W', D + room], has so many further channels, with any values.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.
    """
    (n, *image, c), d = x.shape, w.shape[3]
    tile = tile or tiles.tile("7x7 pooled forward", d, 0)
    lines, across = halved(halved(image))
    # The kernel for three columns of the convolution lies at three places of the window.
    w = [jnp.pad(w, ((0, 0), (at, WINDOW - SIZE - at), (0, 0), (0, 0))) for at in (1, 3, 5)]
    w = jnp.concatenate(w, axis=3).reshape(SIZE * WINDOW * c, 3 * d).astype(x.dtype)
    w = jnp.pad(w, ((0, -len(w) % tile.channels), (0, 0)))
    programs = ceil_div(n * across, tile.rows) * ceil_div(lines, LINES) * ceil_div(d, columns(d))
    made = n * lines * across * d * x.dtype.itemsize
    around = (4 * LINES + 9) * (4 * tile.rows + 8) * c * x.dtype.itemsize
    steps = programs * (2 * LINES + 1) * (len(w) // tile.channels)
    with work(
        "7x7 pooled forward",
        size_in_bytes(x, gain, shift, w) + made,
        made + programs * (around + size_in_bytes(w)),
        steps,
        6 * steps * tile.rows * tile.channels * columns(d),
    ):
        y = _run(
            x.reshape(-1),
            gain,
            shift,
            w,
            images=(n, *image),
            room=room,
            tile=tile,
            interpret=interpret,
        )
    return y.reshape(n, lines, across, d + room)


@functools.partial(jax.jit, static_argnames=("images", "room", "tile", "interpret"))
def _run(x, gain, shift, w, *, images, room, tile, interpret):
    n, d = images[0], len(gain)
    c = len(x) // (n * images[1] * images[2])
    lines, across = halved(halved(images[1:]))
    return call(
        named(_stem, images=images, c=c, d=d, tile=tile, arithmetic=arithmetic(interpret)),
        *(x, gain, shift, w),
        grid=ceil_div(n * across, tile.rows) * ceil_div(lines, LINES) * ceil_div(d, columns(d)),
        out=(shape((n * lines * across, d + room), x.dtype),),
        interpret=interpret,
        tile=tile,
    )[0]
