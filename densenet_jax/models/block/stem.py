"""The stem of ImageNet networks in training: convolution, norm, ReLU and max pooling in one.

Only the gradient of the kernel needs the gradient of the convolution's result, which is four times
as large as the stem's.  A GPU kernel computes both at once, so that the latter is never in memory.
"""

from typing import NamedTuple

import jax

from densenet_jax.models.block import implementations, plain
from densenet_jax.models.block.statistics import (
    Moments,
    affine,
    affine_gradients,
    moments,
    moments_gradient,
    positions,
)
from densenet_jax.models.convolution import gradients
from densenet_jax.models.derivatives import with_gradient
from densenet_jax.models.pooling import maxima, maxima_sums, norm_act_max_pool


class _Settings(NamedTuple):
    """The options of a stem, which do not depend on data."""

    epsilon: float
    implementation: str


def train(
    x: jax.Array, kernel: jax.Array, norm: dict, epsilon: float, implementation: str
) -> tuple[jax.Array, Moments]:
    """Returns the stem of images, [B, H', W', D], and the moments of the convolution's result.

    Args:
      x: images [B, H, W, C].
      kernel: of the convolution of stride 2, [7, 7, C, D].
      norm: its parameters, see `statistics.affine`; the batch's own statistics normalise.
      epsilon: added to each variance.
      implementation: as `implementations.choose` returned it, one that `has_pooled_stage`.
    """
    return _train(x, kernel, norm, _Settings(epsilon, implementation))[0]


def _forward(x, kernel, norm, settings):
    y = plain.convolve(x, kernel, 2)
    found = moments(y)
    pooled, kept = maxima(y, *affine(norm, found, settings.epsilon), "relu")
    return (pooled, found), (y, *kept)


def _backward(settings, residuals, cotangents):
    x, kernel, norm, found, y, where, y_largest = residuals
    d_pooled, d_found = cotangents
    gain, shift = affine(norm, found, settings.epsilon)
    d_gain, d_shift = maxima_sums(y_largest, gain, shift, d_pooled, "relu")
    d_norm, d_more = affine_gradients(norm, found, settings.epsilon, d_shift, d_gain)
    d_found = Moments(*(a + b for a, b in zip(d_found, d_more, strict=True)))
    correction = moments_gradient(found, d_found, positions(y))
    arguments = y, gain, shift, where, d_pooled, correction
    d_kernel = implementations.find(settings.implementation).stem_gradient(x, *arguments)
    # Nothing asks for the gradient of images in training: XLA leaves it out.
    dx, _ = gradients(x, kernel.astype(x.dtype), plain.stem_output_gradient(*arguments), 2)
    return dx, d_kernel.astype(kernel.dtype), d_norm


def _twin(x, kernel, norm, settings):
    y = plain.convolve(x, kernel, 2)
    found = moments(y)
    return norm_act_max_pool(y, *affine(norm, found, settings.epsilon), "relu"), found


_train = with_gradient(
    _forward,
    _backward,
    _twin,
    keep=lambda args, out, extra: (*args, out[1], *extra),
)
