"""Normalisation, activation and convolution in plain JAX: the unit that dense layers are made of.

A stage reads feature maps whose moments are known and makes new ones, together with their moments.
A bottleneck layer is two stages (1x1, 3x3), a plain layer is one, and a transition before a block
is one that also halves the maps (`pool`).  Maps lie in buffers [B, H, W, ...]: a stage reads the
first channels of a buffer, and may write its output into a buffer at some channel.

`models.gpu.stages` and `models.cpu.stages` have the same two functions as fused kernels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models.activation import norm_act, norm_act_gradients
from densenet_jax.models.block.statistics import (
    at_least_float32,
    expected_output,
    moments_of_sums,
    positions,
    sums,
    widen,
)
from densenet_jax.models.convolution import convolution
from densenet_jax.models.convolution import gradients as convolution_gradients
from densenet_jax.models.pooling import (
    average_pool,
    average_pool_gradient,
    maxima_gradient,
    norm_act_max_pool,
)


class Dropout(NamedTuple):
    """Zeroes elements with probability `rate`, and all those of an image with `path_rate`.

    The elements that are kept are scaled, so that means do not change.  `key` is the random key.
    """

    rate: float
    key: jax.Array
    path_rate: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        # Linear in x: it is its own transpose, and the backward pass draws the same mask again.
        if self.rate:
            keep = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
            x = jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)
        if self.path_rate:
            key = jax.random.fold_in(self.key, 1)
            keep = jax.random.bernoulli(key, 1 - self.path_rate, (len(x), 1, 1, 1))
            x = jnp.where(keep, x / (1 - self.path_rate), 0).astype(x.dtype)
        return x


def dropout(x: jax.Array, rate: float, key: jax.Array | None, path_rate: float = 0.0) -> jax.Array:
    """Zeroes elements and whole images of x, see `Dropout`; without a key it returns x."""
    return x if key is None else Dropout(rate, key, path_rate)(x)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves x [B, H, W, C] with an odd kernel [k, k, C, D], padded by k // 2 on every side."""
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])
    return convolution(x, kernel, stride)


def channels(x: jax.Array, start: int, count: int) -> jax.Array:
    """Returns channels start ... start + count - 1 of x [B, H, W, C]."""
    return lax.slice_in_dim(x, start, start + count, axis=3)


def write_channels(x: jax.Array, new: jax.Array, start: int) -> jax.Array:
    """Returns x [B, H, W, C] with `new` [B, H, W, D] at channels start ... start + D - 1."""
    return lax.dynamic_update_slice(x, new.astype(x.dtype), (0, 0, 0, start))


def widened(x: jax.Array, layers: list) -> jax.Array:
    """Returns x [B, H, W, C] as the buffer of a block: with room for what its layers will add."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, added(layers))))


def added(layers: list) -> int:
    """Returns how many channels the layers of a block add."""
    return sum(layer[-1][1].shape[3] for layer in layers)


def stem(
    x: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    kernel: jax.Array,
    *,
    room: int = 0,
    activation: str = "relu",
) -> jax.Array:
    """Returns the stem of images x [B, H, W, C]: convolution, norm, activation and max pooling.

    Args:
      x: the images.
      gain, shift: the normalisation of the convolution's result, [D] each.
      kernel: of the convolution of stride 2, [7, 7, C, D].
      room: the result has so many further channels, for the layers of a block.
      activation: see `models.activation`.
    """
    y = norm_act_max_pool(convolve(x, kernel, 2), gain, shift, activation)
    return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, room))) if room else y


def stem_gradient(
    x: jax.Array,
    y: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    where: jax.Array,
    d_out: jax.Array,
    correction: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Returns the gradient of the stem's kernel, [7, 7, C, D], at least float32.

    Args:
      x: the images [B, H, W, C].
      y: their convolution, [B, h, w, D].
      gain, shift: the normalisation of y, [D] each.
      where: of each window of the max pooling, which tap had the maximum; see `pooling.maxima`.
      d_out: the gradient of the stem's output.
      correction: (a, b), the gradient that comes through the moments of y: see `backward`.
    """
    dy = stem_output_gradient(y, gain, shift, where, d_out, correction)
    kernel = jnp.zeros((7, 7, x.shape[3], y.shape[3]), x.dtype)  # its values do not matter
    return convolution_gradients(x, kernel, dy, 2)[1]


def stem_output_gradient(
    y: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    where: jax.Array,
    d_out: jax.Array,
    correction: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Returns the gradient of y, the convolution's result: see `stem_gradient`."""
    dz = maxima_gradient(y, gain, shift, where, d_out, "relu")
    return (dz * gain + correction[0] + correction[1] * widen(y)).astype(y.dtype)


def forward(
    source: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    kernel: jax.Array,
    *,
    into: jax.Array | None = None,
    offset: int = 0,
    dropout: Dropout | None = None,
    expected: jax.Array | None = None,
    pool: bool = False,
    room: int = 0,
    activation: str = "relu",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the stage's output, and the mean and variance of each of its channels, [D] each.

    Args:
      source: buffer [B, H, W, >= C]; its first C channels are read.
      gain, shift: the normalisation of those channels, [C] each.
      kernel: [k, k, C, D], k 1 or 3.
      into: a buffer that takes the output at channel `offset`, and is returned; None: the output
        is returned alone, [B, H, W, D].
      offset: see `into`.
      dropout: applied to the output; None: nothing dropped.
      expected: about the mean of what is convolved, [C], see `statistics.expected_input`.
      pool: average over windows of 2x2 positions, see `pooling.average_pool`.
      room: a new array gets so many further channels, for the layers of a block.
      activation: name of the function between norm and convolution, see `models.activation`.
    """
    x = channels(source, 0, kernel.shape[2])
    u = norm_act(x, gain, shift, activation)
    # Pooling and a 1x1 convolution commute: pooled first, the convolution has a quarter to do.
    y = convolve(average_pool(u) if pool else u, kernel)
    y = y if dropout is None else dropout(y)
    pivot = expected_output(kernel, expected)
    found = moments_of_sums(*sums(y, pivot), positions(y), pivot)
    if into is None:
        return (jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, room))) if room else y), *found
    return write_channels(into, y, offset), *found


def backward(
    source: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    kernel: jax.Array,
    *,
    d_out: jax.Array,
    out: jax.Array,
    correction: tuple[jax.Array, jax.Array],
    offset: int = 0,
    d_source: jax.Array | None = None,
    dropout: Dropout | None = None,
    pool: bool = False,
    activation: str = "relu",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The transpose of `forward`.

    With y = out[..., offset : offset + D] and (a, b) = correction, the gradient of y is
    d_out[..., offset : offset + D] + a + b * y: what the readers of y contributed, and what its
    moments did (`moments_gradient`).

    Args:
      source, gain, shift, kernel, dropout, pool, activation: as `forward` got them.
      d_out: buffer [B, H, W, >= offset + D] with the gradient of the output.
      out: buffer with the output itself at the same channels.
      correction: the gradient that comes through the output's moments, [D] each.
      offset: see above.
      d_source: buffer like source to whose first C channels the source's gradient is added;
        None: the gradient is returned alone, [B, H, W, C].

    Returns:
      d_source, the gradient of the kernel (at least float32), of shift and of gain.
    """
    c, d = kernel.shape[2:]
    x, y, dy = channels(source, 0, c), channels(out, offset, d), channels(d_out, offset, d)
    dy = (widen(dy) + correction[0] + correction[1] * widen(y)).astype(dy.dtype)
    dy = dy if dropout is None else dropout(dy)
    u = norm_act(x, gain, shift, activation)
    u = average_pool(u) if pool else u
    d_kernel, du = _convolution_gradients(u, kernel.astype(x.dtype), dy)
    du = average_pool_gradient(du, x.shape[1:3]) if pool else du
    dx, d_gain, d_shift = norm_act_gradients(x, gain, shift, du, activation)
    if d_source is not None:
        dx = write_channels(d_source, channels(d_source, 0, c) + dx, 0)
    return dx, d_kernel, d_shift, d_gain


def backward_together(
    source: jax.Array,
    readers: list[tuple],
    d_source: jax.Array,
    within: tuple[int, int],
    activation: str = "relu",
) -> tuple[jax.Array, list[list[jax.Array]]]:
    """Returns `backward` of several layers' stages that read one buffer, for some channels.

    Args:
      source, d_source, activation: see `backward`.
      readers: (gain, shift, kernel, further arguments of `backward`) of each stage.
      within: (start, end): gradients of the channels start ... end - 1 are computed and added.

    Returns:
      d_source, and for each reader the gradients of its kernel, shift and gain, those channels'.
    """
    start, end = within
    x, gradients = channels(source, start, end - start), []
    for gain, shift, kernel, options in readers:
        dx, *found = backward(
            *(x, gain[start:end], shift[start:end], kernel[:, :, start:end]),
            d_source=channels(d_source, start, end - start),
            activation=activation,
            **options,
        )
        d_source = write_channels(d_source, dx, start)
        gradients.append(found)
    return d_source, gradients


def _convolution_gradients(u, kernel, dy):
    """Returns the gradients of `convolve(u, kernel)` with respect to kernel and u."""
    if kernel.shape[:2] == (1, 1):
        d_kernel = _product_over_positions(u, dy)[None, None]
        return d_kernel, jnp.einsum("bhwd,cd->bhwc", dy, kernel[0, 0])
    du, d_kernel = convolution_gradients(u, kernel, dy)
    return d_kernel, du


def _product_over_positions(u, dy):
    """Returns the sums of u [B, H, W, C] times dy [B, H, W, D] over positions, [C, D]."""
    if u.dtype.itemsize < 4:  # XLA:CPU lacks the other order for them
        return jnp.einsum("bhwc,bhwd->cd", u, dy, preferred_element_type=at_least_float32(u.dtype))
    # XLA:CPU transposes the first operand in memory: dy is the narrower one.
    return jnp.einsum("bhwd,bhwc->dc", dy, u).T
