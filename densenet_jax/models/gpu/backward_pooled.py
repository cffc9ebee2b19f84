"""The transpose of a transition (`forward.conv1x1` of an image) as a GPU kernel; see `backward`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.arithmetic import arithmetic
from densenet_jax.models.gpu.backward import added, complete, partition, step_range
from densenet_jax.models.gpu.forward import window
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
    store_matrix,
    store_vector,
    unless_multiple,
    work,
)

WIDEST = 512  # channels of the output for whose gradients of the kernel registers are enough


def _conv1x1_pooled(*refs, n, c, d, image, tile, steps, arithmetic):
    fma, widen, narrow = arithmetic
    x_ref, gain_ref, shift_ref, w_ref, d_ref, *rest, _, dx_ref, sums_ref = refs
    part, j = divide(pl.program_id(0), ceil_div(c, tile.channels))
    ins, outs = span(j * tile.channels, tile.channels), span(0, power_of_2(d))
    row_limit, in_limit = unless_multiple(n, tile.rows), unless_multiple(c, tile.channels)
    out_limit = unless_multiple(d, len(outs))
    inside = None if in_limit is None else ins < in_limit
    gain, shift = load_vector(gain_ref, ins, in_limit), load_vector(shift_ref, ins, in_limit)
    w = load(w_ref, ins, outs, (inside, out_limit))

    def step(i, sums):
        d_w, d_shift, d_gain = sums
        rows = span(i * tile.rows, tile.rows)
        limits = None if row_limit is None else rows < n, in_limit
        if rest:
            y_ref, a_ref, b_ref = rest
            a, b = load_vector(a_ref, outs, out_limit), load_vector(b_ref, outs, out_limit)
            dy = complete(d_ref, y_ref, a, b, rows, outs, (row_limit, out_limit), arithmetic)
        else:
            dy = load(d_ref, rows, outs, (row_limit, out_limit))
        quarter, total = matmul(dy, w, trans_b=True) / 4, 0.0
        for at in window(rows, *image):
            x = widen(load(x_ref, at, ins, limits))
            u = jnp.maximum(fma(x, gain, shift), 0)
            du = jnp.where(u > 0, quarter, 0)
            store(dx_ref, at, ins, du * gain, limits)
            # Tiles of sums: rows are added up after the loop.
            d_shift, d_gain, total = d_shift + du, fma(du, x, d_gain), total + u
        d_w += matmul(narrow(total / 4, x_ref.dtype), dy, trans_a=True)
        return d_w, d_shift, d_gain

    zero = jnp.zeros((tile.rows, tile.channels), jnp.float32)
    sums = jnp.zeros((tile.channels, len(outs)), jnp.float32), zero, zero
    d_w, d_shift, d_gain = lax.fori_loop(*step_range(part, steps, n, tile.rows), step, sums)
    start = part * c * (d + 2)
    store_matrix(sums_ref, start, ins, outs, d, d_w, (inside, out_limit))
    store_vector(sums_ref, start + c * d, ins, d_shift.sum(0), in_limit)
    store_vector(sums_ref, start + c * d + c, ins, d_gain.sum(0), in_limit)


def conv1x1(source, gain, shift, w, d_out, out, correction, *, image, interpret=False, tile=None):
    """The transpose of `forward.conv1x1` with `image`.

    Args:
      source: [N, C].
      gain, shift, w, image: as there.
      d_out: buffer [N', >= D] whose first channels have what the readers of the output contributed
        to its gradient.
      out: buffer with the output at the same channels.
      correction: (a, b); the gradient of the output is d_out + a + b * out.
      interpret: see `tools.call`.
      tile: a `Tile`; None: that of this GPU.

    Returns:
      The gradients of source [N, C], w [C, D], shift and gain, [C].
    """
    n, (c, d) = len(out), w.shape
    tile = tile or tiles.tile("1x1 pooled backward", d, 0)
    columns = ceil_div(c, tile.channels)
    parts, _ = partition(n, tile, columns)
    w = w.astype(source.dtype)
    outs, sums = n * d * out.dtype.itemsize, 4 * parts * c * (d + 2)
    if d > 128:
        # Tiles so wide would be completed by too many programs.
        a, b = correction
        d_out = (d_out[:, :d] + a + b * out[:, :d]).astype(d_out.dtype)
        gradients = (d_out,)
    else:
        outs, gradients = 2 * outs, (d_out, out, *correction)
    maps, weights = 2 * size_in_bytes(source), size_in_bytes(gain, shift, w)
    with work(
        "1x1 pooled backward",
        maps + outs + weights + sums,
        maps + columns * outs + parts * weights + sums,
        columns * ceil_div(n, tile.rows),
        4 * n * c * d,
    ):
        dx, sums = _run(
            *(source, gain, shift, w, *gradients),
            **{"n": n, "image": image, "tile": tile, "interpret": interpret},
        )
    dx, (d_w,), (d_shift,), (d_gain,) = added(dx, sums, parts, 1, c * d, c)
    return dx, d_w.reshape(c, d), d_shift, d_gain


@functools.partial(jax.jit, static_argnames=("n", "image", "tile", "interpret"))
def _run(source, gain, shift, w, *gradients, n, image, tile, interpret):
    c, d = w.shape
    columns = ceil_div(c, tile.channels)
    parts, steps = partition(n, tile, columns)
    # An odd last row or column has no window, and the gradient 0.
    odd = any(size % 2 for size in image)
    dx = (jnp.zeros if odd else lax.empty)(source.shape, source.dtype)
    static = {"n": n, "c": c, "d": d, "image": image, "tile": tile, "steps": steps}
    return call(
        named(_conv1x1_pooled, **static, arithmetic=arithmetic(interpret)),
        *(source, gain, shift, w, *gradients, dx),
        grid=parts * columns,
        out=(shape(dx.shape, dx.dtype), shape((parts * c * (d + 2),))),
        interpret=interpret,
        tile=tile,
        aliases={4 + len(gradients): 0},
    )
