"""The gradient of the stem's kernel, back through pooling, ReLU and norm, as one GPU kernel.

The gradient of the convolution's result, four times as large as the stem's, stays in registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.arithmetic import arithmetic
from densenet_jax.models.gpu.backward import partition, step_range
from densenet_jax.models.gpu.stem import SIZE, columns, halved
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
    store_matrix,
    unless_multiple,
    work,
)

PIXELS = SIZE + 2  # of a line, from which two positions side by side are computed


def _line(c: int) -> int:
    """Returns how many numbers of a line of images with c channels a program loads."""
    return power_of_2(PIXELS * c)


def _padded(images: tuple[int, int, int], c: int) -> tuple[int, int]:
    """Returns height and width of images with zeros around, in which every load lies inside.

    The width is a multiple of eight, so that a program loads several numbers at a time.
    """
    height, width = halved(halved(images[1:]))
    return 4 * height + 6, 8 * ceil_div(4 * (width - 1) + ceil_div(_line(c), c), 8)


def _stem_backward(*refs, images, c, d, tile, steps, arithmetic):
    """Walks over a range of squares of 2x2 positions: four windows of the pooling meet in each."""
    fma, widen, narrow = arithmetic
    x_ref, y_ref, where_ref, d_ref, gain_ref, shift_ref, a_ref, b_ref, sums_ref = refs
    n, *image = images
    convolved, padded, line = halved(image), _padded(images, c), _line(c)
    squares = halved(convolved)
    total = n * squares[0] * squares[1]
    program, j = divide(pl.program_id(0), ceil_div(d, columns(d)))
    part, chunk = divide(program, 8 * line // tile.channels)
    ins, outs = span(chunk * tile.channels, tile.channels), span(j * columns(d), columns(d))
    limit = unless_multiple(d, columns(d))
    gain, shift, a, b = (
        load_vector(ref, outs, limit) for ref in (gain_ref, shift_ref, a_ref, b_ref)
    )
    at, in_line = divide(ins, line)
    at = at * (padded[1] * c) + in_line

    def step(k, sums):
        rows = span(k * tile.rows, tile.rows)
        exists, rows, found = rows < total, jnp.minimum(rows, total - 1), {}
        number, place = divide(rows, squares[0] * squares[1])
        top, left = divide(place, squares[1])
        for under, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
            inside = exists & (top + under < squares[0]) & (left + beside < squares[1])
            window = rows + (under * squares[1] + beside)
            limits = inside, limit  # outside the gradient is 0, whatever the tap
            where = load(where_ref, window, outs, limits, fill=False).astype(jnp.int32)
            found[under, beside] = where, widen(load(d_ref, window, outs, limits))

        def position(below, right, patch, total):
            """Adds the products of a line's numbers and the gradient at one of the positions."""
            line, column = 2 * top + below, 2 * left + right
            inside = exists & (line < convolved[0]) & (column < convolved[1])
            du = jnp.zeros((tile.rows, len(outs)), jnp.float32)
            for (under, beside), (where, d_window) in found.items():
                if under <= below and beside <= right:
                    tap = 3 * (below + 1 - 2 * under) + right + 1 - 2 * beside
                    du += jnp.where(where == tap, d_window, 0)
            y = (number * convolved[0] + line) * convolved[1] + column
            y = widen(load(y_ref, y, outs, (inside, limit)))
            dy = jnp.where(fma(y, gain, shift) > 0, du, 0)
            dy = fma(dy, gain, fma(b, y, a))
            dy = narrow(dy, x_ref.dtype, inside[:, None])
            return total + matmul(patch, dy, trans_a=True)

        for below in (0, 1):
            first = (number * padded[0] + 4 * top + 2 * below) * padded[1] + 4 * left
            patch = plgpu.load(x_ref.at[(first * c)[:, None] + at[None, :]])
            sums = [position(below, right, patch, sums[right]) for right in (0, 1)]
        return sums

    sums = [jnp.zeros((tile.channels, len(outs)), jnp.float32)] * 2
    sums = lax.fori_loop(*step_range(part, steps, total, tile.rows), step, sums)
    for right, found in enumerate(sums):
        start = (2 * part + right) * 8 * line * d
        store_matrix(sums_ref, start, ins, outs, d, found, (None, limit))


def stem(x, y, gain, shift, where, d_out, correction, *, interpret=False, tile=None):
    """Returns the gradient of the stem's kernel, [7, 7, C, D] in float32.

    Args:
      x: images [B, H, W, C].
      y: their convolution, [B, h, w, D].
      gain, shift: the normalisation of y, [D] each.
      where, d_out: of `pooling.maxima` the windows' taps, and the gradient of the result.
      correction: (a, b); the gradient of y has further parts a + b * y.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.
    """
    (n, *image, c), d = x.shape, y.shape[3]
    tile = tile or tiles.tile("7x7 pooled backward", d, 0)
    tile = tile._replace(channels=min(tile.channels, 8 * _line(c)))
    squares, chunks = n * where.shape[1] * where.shape[2], 8 * _line(c) // tile.channels
    blocks = ceil_div(d, columns(d))
    parts, steps = partition(squares, tile, chunks * blocks)
    sums, windows = 4 * parts * 2 * 8 * _line(c) * d, size_in_bytes(where, d_out)
    patches = parts * steps * tile.rows * 2 * 8 * _line(c) * x.dtype.itemsize
    sizes = zip(image, _padded((n, *image), c), strict=True)
    zeros = [(SIZE // 2, new - SIZE // 2 - old) for old, new in sizes]
    x = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    with work(
        "7x7 pooled backward",
        size_in_bytes(x, y) + windows + sums,
        chunks * (size_in_bytes(y) + 4 * windows) + blocks * patches + sums,
        chunks * blocks * ceil_div(squares, tile.rows),
        4 * squares * 2 * 8 * _line(c) * blocks * columns(d),
    ):
        found = _run(
            *(x.reshape(-1), y.reshape(-1, d), where.reshape(-1, d), d_out.reshape(-1, d)),
            *(gain, shift, *correction),
            **{"images": (n, *image), "c": c, "tile": tile, "interpret": interpret},
        )
    found = found.reshape(parts, 2, 8, _line(c), d)[:, :, :SIZE, : PIXELS * c].sum(0)
    found = found.reshape(2, SIZE, PIXELS, c, d)
    # The pixels of the position on the right begin two further.
    return found[0, :, :SIZE] + found[1, :, 2:]


@functools.partial(jax.jit, static_argnames=("images", "c", "tile", "interpret"))
def _run(x, y, where, d_out, gain, shift, a, b, *, images, c, tile, interpret):
    d = len(gain)
    programs = 8 * _line(c) // tile.channels * ceil_div(d, columns(d))
    parts, steps = partition(len(where), tile, programs)
    static = {"images": images, "c": c, "d": d, "tile": tile, "steps": steps}
    return call(
        named(_stem_backward, **static, arithmetic=arithmetic(interpret)),
        *(x, y, where, d_out, gain, shift, a, b),
        grid=parts * programs,
        out=(shape((parts * 2 * 8 * _line(c) * d,)),),
        interpret=interpret,
        tile=tile,
    )[0]
