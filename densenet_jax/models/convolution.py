"""A convolution whose gradients XLA:CPU computes as fast inside a loop as outside of one.

Automatic differentiation writes the convolutions of a gradient with an unusual order of dimensions.
XLA:CPU has a fast kernel only for the usual order, and it reorders only at the top level of a
program: inside a `lax.scan` or `lax.while_loop` such a convolution runs some 20 times slower
(jaxlib 0.10.2).  Here the gradients are written in the usual order; they are equal to the bit.
"""

import functools

import jax
from jax import lax

from densenet_jax.models.block.statistics import at_least_float32, widen
from densenet_jax.models.derivatives import with_gradient

LAYOUT = ("NHWC", "HWIO", "NHWC")
_convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves x [B, H, W, C] with an odd kernel [k, k, C, D], padded by k // 2 on every side."""
    return _with_gradient(x, kernel, stride)[0]


def _padded(x, kernel, stride):
    return _convolve(x, kernel, (stride, stride), [(k // 2, k // 2) for k in kernel.shape[:2]])


def _forward(x, kernel, stride):
    return _padded(x, kernel, stride), ()


def _backward(stride, saved, dy):
    dx, d_kernel = gradients(*saved, dy, stride)
    return dx, d_kernel.astype(saved[1].dtype)


def gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of x (its type) and of the kernel (at least float32).

    Args:
      x, kernel, stride: as of `convolution`.
      dy: gradient of its result, [B, h, w, D].
    """
    cpu, tpu, other = (
        functools.partial(way, stride) for way in (_written_out, _summed_wide, _automatic)
    )
    return lax.platform_dependent(x, kernel, dy, cpu=cpu, tpu=tpu, default=other)


def _automatic(stride, x, kernel, dy):
    dx, d_kernel = jax.vjp(lambda x, kernel: _padded(x, kernel, stride), x, kernel)[1](dy)
    return dx, widen(d_kernel)


def _summed_wide(stride, x, kernel, dy):
    """Returns what `gradients` does, with float32 sums for the gradient of the kernel.

    Sums over devices are then float32, too, and share an all-reduce with the sums of batch
    statistics, which have this type.  cuDNN lacks the combination of types, and would first convert
    x and dy in memory.
    """
    dx = jax.vjp(lambda x: _padded(x, kernel, stride), x)[1](dy)[0]
    _, around = _paddings(stride, x, kernel, dy)
    d_kernel = lax.conv_general_dilated(
        *(x, dy, (1, 1), around),
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=at_least_float32(x.dtype),
    )
    return dx, d_kernel


def _written_out(stride, x, kernel, dy):
    around_dy, around_x = _paddings(stride, x, kernel, dy)
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _convolve(dy, mirrored, (1, 1), around_dy, lhs_dilation=(stride, stride))
    # The gradient of the kernel sums over examples, so examples and channels change places.
    by_channel, outputs = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    d_kernel = _convolve(by_channel, outputs, (1, 1), around_x, rhs_dilation=(stride, stride))
    return dx, widen(d_kernel.transpose(1, 2, 0, 3))


def _paddings(stride, x, kernel, dy):
    """Returns the padding of dy for the gradient of x, and of x for that of the kernel."""
    sizes, pads = kernel.shape[:2], [k // 2 for k in kernel.shape[:2]]
    reach = [(n - 1) * stride + 1 for n in dy.shape[1:3]]  # rows and columns from first to last
    spare = [n - r for n, r in zip(x.shape[1:3], reach, strict=True)]
    around_dy = [(k - 1 - p, p + n) for k, p, n in zip(sizes, pads, spare, strict=True)]
    around_x = [(p, k - 1 - p - n) for k, p, n in zip(sizes, pads, spare, strict=True)]
    return around_dy, around_x


_with_gradient = with_gradient(_forward, _backward, _padded)
