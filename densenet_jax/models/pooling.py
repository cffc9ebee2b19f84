"""Normalisation, activation and pooling in one, with gradients written by hand.

Automatic differentiation keeps what it normalised, and XLA's gradient of max pooling (a select and
a scatter) takes several passes over a tensor four times as large as the result.  Here the gradients
are sums of a few shifted maps, which fuse with the gradients of activation and normalisation.

Maps are [B, H, W, C]; gain and shift, [C] each, are the normalisation (`statistics.affine`); f is
the activation of a given name (`models.activation`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import act_gradient, norm_act, norm_act_gradients
from densenet_jax.models.block.statistics import widen
from densenet_jax.models.derivatives import with_gradient
from densenet_jax.models.inputs import are_numbers, check_name


def average_pool(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 windows; an odd last row or column is left out."""
    wide = widen(x)
    if not are_numbers(x.shape[1:3]):  # where slices would end cannot be checked
        window = (1, 2, 2, 1)
        return (lax.reduce_window(wide, 0.0, lax.add, window, window, "VALID") / 4).astype(x.dtype)
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = every_second(wide, 1, 0, height) + every_second(wide, 1, 1, height)
    sums = every_second(rows, 2, 0, width) + every_second(rows, 2, 1, width)
    return (sums / 4).astype(x.dtype)


def average_pool_gradient(dy: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Returns the gradient of `average_pool`'s argument of a height and width, at least float32."""
    return _fit(_merge(_quadruple(widen(dy)) / 4), size)


def every_second(x: jax.Array, axis: int, start: int, stop: int) -> jax.Array:
    """Returns x[start:stop:2] along an axis; with a symbolic batch, indexing would gather."""
    return lax.slice_in_dim(x, start, stop, 2, axis)


def _average(x):
    return x.mean((1, 2))


def _maximum(x):
    return x.max((1, 2))


# Maps [B, H, W, C], in at least float32, to features [B, C] or [B, 2 C].
GLOBAL_POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "avg": _average,
    "max": _maximum,
    "avgmax": lambda x: (_average(x) + _maximum(x)) / 2,
    "catavgmax": lambda x: jnp.concatenate([_average(x), _maximum(x)], axis=-1),
}


def find_global_pool(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the pooling over all positions, of maps [B, H, W, C] in any type.

    Raises:
      ValueError: there is none of this name; the message lists the names.
    """
    check_name("global_pool", name, GLOBAL_POOLS)
    return lambda x: GLOBAL_POOLS[name](widen(x))


def norm_act_average_pool(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> jax.Array:
    """Returns average_pool(f(x * gain + shift))."""
    return _average_with_gradient(x, gain, shift, activation)[0]


def _average_forward(x, gain, shift, activation):
    return average_pool(norm_act(x, gain, shift, activation))


def _average_backward(activation, residuals, dy):
    # Behind a barrier XLA cannot share what the forward pass computed: it would have to store it.
    (x, gain, shift), dy = lax.optimization_barrier((residuals, dy))
    du = average_pool_gradient(dy, x.shape[1:3])
    dx, d_gain, d_shift = norm_act_gradients(x, gain, shift, du, activation)
    return dx, _like(d_gain, gain), _like(d_shift, shift)


_average_with_gradient = with_gradient(
    lambda *args: (_average_forward(*args), ()), _average_backward, _average_forward
)


def norm_act_max_pool(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> jax.Array:
    """Returns the maxima of f(x * gain + shift) over 3x3 windows, stride 2, padding 1.

    The maximum of a window with NaN is NaN.
    """
    return _max_with_gradient(x, gain, shift, activation)[0]


def maxima(
    x: jax.Array, gain: jax.Array, shift: jax.Array, activation: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns `norm_act_max_pool`'s result, each window's position of the maximum, and x there.

    A window's positions, its taps, are numbered 0 ... 8 line by line, in uint8.
    """
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    around = ((0, 0), (1, 2), (1, 2), (0, 0))
    x_padded = jnp.pad(x, around)
    # The padding must never win: its x would stand for a value's.
    u = norm_act(x, gain, shift, activation)
    u_padded = jnp.pad(u, around, constant_values=-jnp.inf)
    for tap in range(9):
        i, j = divmod(tap, 3)
        x_tap, u_tap = (
            every_second(every_second(v, 1, i, i + 2 * height), 2, j, j + 2 * width)
            for v in (x_padded, u_padded)
        )
        if tap == 0:
            largest, x_largest = u_tap, x_tap
            where = jnp.zeros(u_tap.shape, jnp.uint8)
            continue
        # Of equal values the first counts, as in the reference; NaN wins, and the first NaN stays.
        new = ~(u_tap <= largest) & ~jnp.isnan(largest)
        largest = jnp.where(new, u_tap, largest)
        x_largest = jnp.where(new, x_tap, x_largest)
        where = jnp.where(new, jnp.uint8(tap), where)
    # Computed again, so that XLA stores x alone and makes the result where it goes, as in a buffer.
    return norm_act(x_largest, gain, shift, activation), (where, x_largest)


def maxima_sums(
    x_largest: jax.Array, gain: jax.Array, shift: jax.Array, dy: jax.Array, activation: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of gain and shift, [C] each, given that of `maxima`'s result."""
    # One value of each window has a gradient: the sums need no more than those.
    d = act_gradient(x_largest, gain, shift, dy, activation)
    return (d * widen(x_largest)).sum((0, 1, 2)), d.sum((0, 1, 2))


def maxima_gradient(
    x: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    where: jax.Array,
    dy: jax.Array,
    activation: str,
) -> jax.Array:
    """Returns the gradient of x * gain + shift, given `where` and the gradient of the maxima."""
    # Window (a, b) is centred at position (2a, 2b).  An odd position lies between two centres: it
    # is tap 2 of the window before it and tap 0 of the one behind.  Everything is broadcast and
    # compared, nothing interleaved, so that XLA can fuse it with what follows.
    odd_row, odd_column = (lax.broadcasted_iota(jnp.uint8, (2, 1, 2, 1), d) for d in (0, 2))

    def part(row_behind, column_behind):
        """The gradient from one of the up to four windows that a position lies in."""
        tap = 3 * (1 - row_behind) * (1 + odd_row) + (1 - column_behind) * (1 + odd_column)
        here = _quadruple(_behind(where, row_behind, column_behind, 255)) == tap
        here &= (odd_row >= row_behind) & (odd_column >= column_behind)
        return jnp.where(here, _quadruple(_behind(widen(dy), row_behind, column_behind, 0)), 0)

    du = _fit(_merge(part(0, 0) + part(0, 1) + part(1, 0) + part(1, 1)), x.shape[1:3])
    return act_gradient(x, gain, shift, du, activation)


def _max_backward(activation, residuals, dy):
    x, gain, shift, where, x_largest = residuals
    d_gain, d_shift = maxima_sums(x_largest, gain, shift, dy, activation)
    dz = maxima_gradient(x, gain, shift, where, dy, activation)
    return (dz * gain).astype(x.dtype), _like(d_gain, gain), _like(d_shift, shift)


_max_with_gradient = with_gradient(maxima, _max_backward, lambda *args: maxima(*args)[0])


def _like(gradient, value):
    return gradient.astype(value.dtype)


def _behind(x, rows: int, columns: int, outside):
    """Returns x shifted towards the origin by rows and columns."""
    low_high = ((0, 0, 0), (-rows, rows, 0), (-columns, columns, 0), (0, 0, 0))
    return lax.pad(x, jnp.asarray(outside, x.dtype), low_high)


def _quadruple(x):
    """Returns x [B, H, W, C] as [B, H, 1, W, 1, C], which broadcasts to four copies."""
    return x[:, :, None, :, None]


def _merge(x):
    """Returns x, broadcast to [B, H, 2, W, 2, C], as [B, 2H, 2W, C]."""
    b, h, _, w, _, c = x.shape
    return jnp.broadcast_to(x, (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _fit(x, size: tuple[int, ...]):
    """Cuts x to a height and width, or pads it with zeros."""
    x = x[:, : size[0], : size[1]]
    return jnp.pad(x, ((0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0)))
