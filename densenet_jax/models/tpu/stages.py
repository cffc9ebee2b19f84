"""The stages of a bottleneck layer in the forms that XLA:TPU fuses, in plain JAX.

A TPU's memory is read and written in tiles of 128 channels, and its compiler fuses more around a
convolution than it does elsewhere. Measured by what it compiles (docs/scaling_predictions.md),
two forms matter:

- What is written into a buffer is a multiple of 128 channels at such a multiple.  Then the
  convolution itself writes it; otherwise the update is another pass.
- Sums over positions of a gradient f'(z) du, where du = dy W^T, are sums of products of W with
  f'(z)^T dy, which is a product over positions like the gradient of W.  So one convolution
  (`gradients_of_parameters`) returns what two passes over du would, and du is never stored.

`block.plain` has the same functions in the usual form.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from densenet_jax.models.activation import act_gradient, find_activation, norm_act
from densenet_jax.models.block import plain
from densenet_jax.models.block.devices import mesh_axes, over_devices
from densenet_jax.models.block.statistics import (
    at_least_float32,
    expected_output,
    moments_of_sums,
    positions,
    sums,
    widen,
)

LANES = 128


def forward(
    source: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    kernel: jax.Array,
    *,
    into: jax.Array | None = None,
    dropout: plain.Dropout | None = None,
    expected: jax.Array | None = None,
    activation: str = "relu",
    **options,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `block.plain.forward`."""
    if into is not None or dropout is not None or options:
        options |= {
            "into": into,
            "dropout": dropout,
            "expected": expected,
            "activation": activation,
        }
        return plain.forward(source, gain, shift, kernel, **options)
    x = norm_act(plain.channels(source, 0, kernel.shape[2]), gain, shift, activation)
    # Where maps are large XLA would choose another layout than for the convolution that reads them.
    y = _channels_innermost(plain.convolve(x, kernel))
    pivot = expected_output(kernel, expected)
    return y, *moments_of_sums(*sums(y, pivot), positions(y), pivot)


def _channels_innermost(x):
    """Returns x [B, H, W, C], on a TPU with images next to channels in memory."""
    layout = Layout(major_to_minor=(1, 2, 0, 3))
    return lax.platform_dependent(
        x, tpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


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
    dropout: plain.Dropout | None = None,
    activation: str = "relu",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `block.plain.backward`.  Channels of d_source from C on may change by adding zeros."""
    if d_source is None or dropout is not None or kernel.shape[:2] != (1, 1):
        return plain.backward(
            *(source, gain, shift, kernel),
            d_out=d_out,
            out=out,
            correction=correction,
            offset=offset,
            d_source=d_source,
            dropout=dropout,
            activation=activation,
        )
    c, d = kernel.shape[2:]
    y, dy = plain.channels(out, offset, d), plain.channels(d_out, offset, d)
    dy = (widen(dy) + correction[0] + correction[1] * widen(y)).astype(dy.dtype)
    # A slice is not fused into that product: the whole buffer is read if that moves fewer bytes.
    stop = min(-(-c // LANES) * LANES, source.shape[3])
    read = source.shape[3] if 3 * stop > source.shape[3] else stop
    x = plain.channels(source, 0, read)
    given = (gain, shift, kernel[0, 0])
    d_kernel, d_gain, d_shift = gradients_of_parameters(x, *given, dy, activation)
    gain, shift, kernel = (_padded(v, stop) for v in given)
    du = jnp.einsum("bhwd,cd->bhwc", dy, kernel.astype(dy.dtype))
    dz = act_gradient(plain.channels(source, 0, stop), gain, shift, du, activation)
    new = plain.channels(d_source, 0, stop) + (dz * gain).astype(du.dtype)
    d_source = plain.write_channels(d_source, new, 0)
    return d_source, d_kernel[None, None], d_shift, d_gain


def _padded(x, size: int):
    """Returns x with zeros behind it along its first axis."""
    return jnp.pad(x, ((0, size - len(x)), *((0, 0),) * (x.ndim - 1)))


def gradients_of_parameters(
    x: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
    activation: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of kernel, gain and shift, at least float32, for f(z) W = y.

    Here z = x * gain + shift, and W is applied to every position, or to the sums of 2x2 positions.
    XLA would add the three products over the devices of the mesh, all channels of x; mapped over
    the devices, only what is returned is added.

    Args:
      x: [B, H, W, >= C]; its first C channels count.
      gain, shift: [C] each.
      kernel: W, [C, D].
      dy: gradient of y, [B, H, W, D] or [B, H // 2, W // 2, D].
      activation: name of f in `models.activation`.
    """
    run = functools.partial(_gradients_of_parameters, activation)
    if x.shape[0] % mesh_axes()[1]:
        return run(x, dy, gain, shift, kernel)
    return over_devices(run, (x, dy), (gain, shift, kernel), returns_maps=False)


def _gradients_of_parameters(activation, x, dy, gain, shift, kernel):
    c, stride, dtype = len(gain), x.shape[1] // dy.shape[1], at_least_float32(x.dtype)
    gain, shift, kernel = (_padded(v, x.shape[3]) for v in (gain, shift, kernel))
    # A factor of one for each of the three, which XLA does not know: else it would compute what
    # they share outside of the convolution, and store it.
    ones = lax.optimization_barrier(jnp.ones((3, 1), x.dtype))
    x = x[:, : stride * dy.shape[1], : stride * dy.shape[2], None] * ones
    z = widen(x) * gain + shift
    y, pull = jax.vjp(find_activation(activation), z)
    (slope,) = pull(jnp.ones_like(z))
    which = lax.broadcasted_iota(jnp.int32, (3, 1), 0)
    factors = jnp.where(which == 0, y, jnp.where(which == 1, slope * x, slope))
    # [C, 3, stride, stride, D]: examples are the features that are summed over.
    found = lax.conv_general_dilated(
        factors.astype(x.dtype),
        dy[:, :, :, None],
        window_strides=(1, 1, 1),
        padding="VALID",
        rhs_dilation=(stride, stride, 1),
        dimension_numbers=lax.ConvDimensionNumbers(
            lhs_spec=(4, 0, 1, 2, 3), rhs_spec=(4, 0, 1, 2, 3), out_spec=(0, 4, 2, 3, 1)
        ),
        preferred_element_type=dtype,
    )
    d_kernel, by_x, by_one = jnp.moveaxis(found.sum((2, 3)), 1, 0)
    used = widen(kernel.astype(x.dtype))
    return d_kernel[:c], (used * by_x).sum(1)[:c], (used * by_one).sum(1)[:c]
