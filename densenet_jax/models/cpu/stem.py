"""The stem's convolution and the poolings as CPU kernels; see `cpu.stages`.

Each function computes what the plain one of the same name does; `implementations.around_blocks`
chooses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.models import convolution, pooling, stem
from densenet_jax.models.activation import is_relu
from densenet_jax.models.block.devices import over_devices
from densenet_jax.models.block.statistics import (
    Moments,
    moments_gradient,
    moments_of_sums,
    positions,
)
from densenet_jax.models.cpu.library import array, call
from densenet_jax.models.derivatives import with_gradient


class _How(NamedTuple):
    """What a convolution's call does not take from arrays."""

    stride: int
    products: str


def measured_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, products: str = "float32"
) -> tuple[jax.Array, Moments]:
    """See `stem.measured_convolution`; products: one of `building.PRODUCTS`."""
    return _measured(x, kernel, _How(stride, products))[0]


def _convolution_forward(x, kernel, how):
    # The output in the middle of the first image: near the mean, centred images or not.
    stride, products = how
    height, width = (-(-n // stride) // 2 * stride for n in x.shape[1:3])
    half = kernel.shape[0] // 2
    around = jnp.pad(x[:1], ((0, 0), (half, half), (half, half), (0, 0)))
    window = around[:, height : height + kernel.shape[0], width : width + kernel.shape[1]]
    pivot = lax.stop_gradient(jnp.einsum("bhwc,hwcd->d", window, kernel.astype(x.dtype)))

    def run(x, kernel, pivot):
        rows, columns = (-(-n // stride) for n in x.shape[1:3])
        out = array(x.shape[0], rows, columns, kernel.shape[3]), array(2, kernel.shape[3])
        y, sums = call("Convolve", (x, kernel, pivot), out, None, products, stride=stride)
        return y, *sums

    y, *sums = over_devices(run, (x,), (kernel, pivot))
    moments = moments_of_sums(*sums, positions(y), pivot)
    return (y, moments), (y, moments)


def _convolution_backward(how, residuals, cotangents):
    stride, products = how
    x, kernel, y, moments = residuals
    d_y, d_moments = cotangents
    constant, slope = moments_gradient(moments, d_moments, positions(y))

    def run(x, d_y, y, constant, slope):
        arrays, out = (x, d_y, y, constant, slope), (array(*kernel.shape),)
        return call("ConvolveBackward", arrays, out, None, products, stride=stride)

    (d_kernel,) = over_devices(run, (x, d_y, y), (constant, slope), returns_maps=False)
    # The gradient of images is not used in training; the compiler removes it then.
    corrected = d_y + constant + slope * y
    dx, _ = convolution.gradients(x, kernel.astype(x.dtype), corrected, stride)
    return dx, d_kernel.astype(kernel.dtype)


def _twin(x, kernel, how):
    return stem.measured_convolution(x, kernel, how.stride)


def _portable(*args):
    found = _twin(*args)
    return found, found


_measured = with_gradient(_convolution_forward, _convolution_backward, _twin, portable=_portable)


def _pooling(
    function: str, shape: Callable[[int, int], tuple[int, int]], plain: Callable
) -> Callable:
    """Returns the CPU kernel of a function in `pooling`, with its gradient.

    Args:
      function: its name in the library.
      plain: the function in `pooling`.
      shape: maps height and width of the input to those of the result.
    """

    def forward(x, gain, shift, products):
        def run(x, gain, shift):
            b, h, w, c = x.shape
            results = (array(b, *shape(h, w), c),)
            return call(function, (x, gain, shift), results, None, products)

        return over_devices(run, (x,), (gain, shift))[0], ()

    def backward(products, residuals, dy):
        def run(x, dy, gain, shift):
            out = array(*x.shape), array(*gain.shape), array(*gain.shape)
            return call(f"{function}Backward", (x, gain, shift, dy), out, None, products)

        x, *vectors = residuals
        dx, *sums = over_devices(run, (x, dy), tuple(vectors))
        return dx, *(d.astype(v.dtype) for d, v in zip(sums, vectors, strict=True))

    def twin(x, gain, shift, _):
        return plain(x, gain, shift, "relu")

    pool = with_gradient(forward, backward, twin, portable=lambda *args: (twin(*args), ()))

    def pooled(x, gain, shift, activation, products="float32"):
        assert is_relu(activation)
        return pool(x, gain, shift, products)[0]

    return pooled


norm_act_max_pool = _pooling(
    "MaxPool", lambda h, w: ((h + 1) // 2, (w + 1) // 2), pooling.norm_act_max_pool
)
norm_act_average_pool = _pooling(
    "AveragePool", lambda h, w: (h // 2, w // 2), pooling.norm_act_average_pool
)
