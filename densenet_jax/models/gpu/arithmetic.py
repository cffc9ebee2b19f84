"""Arithmetic of the GPU kernels for which their compiler chooses too many instructions.

Kernels take an `Arithmetic`: that of a GPU, or one written with operators for any device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

_WIDEN = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
_NARROW = "cvt.rn{relu}.bf16x2.f32 $0, $2, $1;"
_NARROW_MASKED = "{{.reg .b32 t; cvt.rn{relu}.bf16x2.f32 t, $2, $1; and.b32 $0, t, $3;}}"


class Arithmetic(NamedTuple):
    """Functions of tiles, which are broadcast to one shape.

    Attributes:
      multiply_add: maps float32 (a, b, c) to a * b + c.
      widen: maps a tile to float32.
      narrow: maps (y, dtype, mask=None, relu=False) to float32 y, or its ReLU, in another type; 0
        where the mask is False.  NaN stays NaN.
    """

    multiply_add: Callable[[Any, Any, Any], jax.Array]
    widen: Callable[[Any], jax.Array]
    narrow: Callable[..., jax.Array]


def arithmetic(interpret: bool) -> Arithmetic:
    """Returns the functions for a kernel; see `tools.call` for `interpret`."""
    if interpret:
        return Arithmetic(lambda a, b, c: a * b + c, _widen_by_operators, _narrow_by_operators)
    return Arithmetic(_fused_multiply_add, _widen, _narrow)


def _widen_by_operators(x):
    return x.astype(jnp.float32)


def _narrow_by_operators(y, dtype, mask=None, relu=False):
    y = jnp.maximum(y, 0) if relu else y
    return (y if mask is None else jnp.where(mask, y, 0)).astype(dtype)


def _fused_multiply_add(a, b, c):
    # The compiler makes two instructions of the operators, because they round twice.
    arrays = jnp.broadcast_arrays(a, b, c)
    return _inline("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", 1, jnp.float32, *arrays)


def _widen(x):
    if x.dtype != jnp.bfloat16:
        return _widen_by_operators(x)
    return _inline(_WIDEN, "=r,=r,r", 2, jnp.float32, x)


def _narrow(y, dtype, mask=None, relu=False):
    if dtype != jnp.bfloat16:
        return _narrow_by_operators(y, dtype, mask, relu)
    # One instruction for the ReLU and rounding of two numbers, and one for their masks.
    text = (_NARROW if mask is None else _NARROW_MASKED).format(relu=".relu" * relu)
    if mask is None:
        return _inline(text, "=r,f,f", 2, dtype, y)
    bits = jnp.where(mask, -1, 0).astype(jnp.int16)
    return _inline(text, "=r,f,f,r", 2, dtype, y, jnp.broadcast_to(bits, y.shape))


def _inline(text, constraints, pack, dtype, *arrays):
    """Returns what instructions make of `pack` elements of arrays of one shape at a time."""
    (result,) = plgpu.elementwise_inline_asm(
        text,
        args=arrays,
        constraints=constraints,
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arrays[0].shape, dtype)],
    )
    return result
