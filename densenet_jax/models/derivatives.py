"""Functions with a gradient written by hand that every transformation of JAX applies to.

`jax.custom_vjp` allows reverse mode alone. Here a function also has a twin, the same function in
operations that JAX differentiates. Reverse mode uses the gradient written by hand, and forward mode
(`jax.jvp`, `jax.linearize`, `jax.jacfwd`) and derivatives of the gradient use the twin.

The derivative is a primitive of its own, `linear_p`, which knows its transpose: JAX makes a
gradient by transposing a derivative. A program that is exported (`jax.export`) gets the twin
instead of kernels, which only this machine has.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir

linear_p = core.Primitive("densenet_jax_linear")
linear_p.multiple_results = True


class Map(NamedTuple):
    """A map (residuals, vectors) -> vectors, all lists of arrays, that is linear in the vectors.

    Attributes:
      run: computes it.
      twin: computes the same in operations that JAX differentiates and exports.
    """

    run: Callable[[list, list], list]
    twin: Callable[[list, list], list]


def with_gradient(
    forward: Callable,
    backward: Callable,
    twin: Callable,
    keep: Callable = lambda args, out, extra: (*args, *extra),
    inputs: Callable | None = None,
    portable: Callable | None = None,
) -> Callable:
    """Returns the function (*args, static) -> (out, extra) with a gradient written by hand.

    Args:
      forward: the function. Every argument but the last, which is hashable, is a tree of arrays;
        `extra`, a tuple of trees, is what only the gradient needs, and counts as constant.
      backward: maps (static, residuals, gradient of out) to the gradients of args.
      twin: (*args, static) -> out.
      keep: maps (args, out, extra) to the residuals, what is kept for the gradient.
      inputs: maps the residuals to args; None: args are the first residuals.
      portable: like `forward`, in operations that can be exported; None: `forward` has such.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
    def function(args, static):
        if portable is None:
            return forward(*args, static)
        return _either(forward, portable, args, static)

    def rule(static, primals, tangents):
        (args,), (d_args,) = primals, tangents
        out, extra = function(args, static)
        residuals, kept = jax.tree.flatten(keep(args, out, extra))
        outs, returned = jax.tree.flatten(out)
        taken = jax.tree.structure(args)
        vectors = taken.flatten_up_to(d_args)
        moving = [not _is_zero(vector) for vector in vectors]

        def given(residuals):
            known = jax.tree.unflatten(kept, residuals)
            found = known[: len(args)] if inputs is None else inputs(known)
            return tuple(found)

        def of_args(*args):
            return twin(*args, static)

        def push(residuals, vectors):
            primals = given(residuals)
            rest = iter(vectors)
            full = [
                next(rest) if moves else _zero(primal)
                for moves, primal in zip(moving, taken.flatten_up_to(primals), strict=True)
            ]
            return jax.tree.leaves(jax.jvp(of_args, primals, jax.tree.unflatten(taken, full))[1])

        def pull(gradient, residuals, cotangents):
            found = gradient(residuals, jax.tree.unflatten(returned, cotangents))
            leaves = taken.flatten_up_to(tuple(found))
            return [leaf for leaf, moves in zip(leaves, moving, strict=True) if moves]

        def by_hand(residuals, d_out):
            return backward(static, jax.tree.unflatten(kept, residuals), d_out)

        def by_twin(residuals, d_out):
            return jax.vjp(of_args, *given(residuals))[1](d_out)

        pulls = Map(functools.partial(pull, by_hand), functools.partial(pull, by_twin))
        d_outs = linear_p.bind(
            *residuals,
            *(jnp.asarray(d) for d, moves in zip(vectors, moving, strict=True) if moves),
            push=Map(push, push),
            pull=pulls,
            known=len(residuals),
            like=tuple(map(jax.typeof, outs)),
        )
        constant = jax.tree.map(_zero, extra)
        return (out, extra), (jax.tree.unflatten(returned, d_outs), constant)

    function.defjvp(rule, symbolic_zeros=True)

    def call(*args):
        # NumPy's arrays become JAX's, as the operands of every primitive must be.
        return function(jax.tree.map(jnp.asarray, args[:-1]), args[-1])

    return call


def _either(run: Callable, twin: Callable, args: tuple, static: Any) -> Any:
    """Returns run(*args, static), or twin(*args, static) in a program that is exported."""
    leaves, tree = jax.tree.flatten(args)
    shapes = jax.eval_shape(lambda *args: run(*args, static), *args)

    def flat(function):
        return lambda known, _: jax.tree.leaves(function(*jax.tree.unflatten(tree, known), static))

    like = tuple(jax.core.ShapedArray(x.shape, x.dtype) for x in jax.tree.leaves(shapes))
    both = Map(flat(run), flat(twin))
    found = linear_p.bind(*leaves, push=both, pull=both, known=len(leaves), like=like)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _is_zero(vector: Any) -> bool:
    return isinstance(vector, SymbolicZero) or vector.dtype == jax.dtypes.float0


def _zero(value: Any) -> Any:
    """Returns the tangent zero of an array, which for integers and keys has a type of its own."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


def _run(*arrays, push, pull, known, like):
    return push.run(list(arrays[:known]), list(arrays[known:]))


def _lower(context, *arrays, push, pull, known, like):
    exported = context.module_context.lowering_parameters.for_export
    chosen = push.twin if exported else push.run
    lower = mlir.lower_fun(
        lambda *arrays: chosen(list(arrays[:known]), list(arrays[known:])), multiple_results=True
    )
    return lower(context, *arrays)


def _jvp(primals, tangents, *, push, pull, known, like):
    options = {"push": push, "pull": pull, "known": known, "like": like}
    out = linear_p.bind(*primals, **options)
    pairs = zip(primals, tangents, strict=True)
    full = [_zero(value) if type(d) is ad.Zero else d for value, d in pairs]
    if all(type(d) is ad.Zero for d in tangents[:known]):
        return out, linear_p.bind(*primals[:known], *full[known:], **options)

    def twin(*arrays):
        return push.twin(list(arrays[:known]), list(arrays[known:]))

    return out, jax.jvp(twin, tuple(primals), tuple(full))[1]


def _transpose(cotangents, *arrays, push, pull, known, like):
    filled = [
        jnp.zeros(aval.shape, aval.dtype) if type(ct) is ad.Zero else ct
        for ct, aval in zip(cotangents, like, strict=True)
    ]
    vectors = arrays[known:]
    asked = [ad.is_undefined_primal(vector) for vector in vectors]  # the others are zeros
    pairs = zip(vectors, asked, strict=True)
    avals = tuple(vector.aval if asks else jax.typeof(vector) for vector, asks in pairs)
    found = linear_p.bind(*arrays[:known], *filled, push=pull, pull=push, known=known, like=avals)
    wanted = (d if asks else None for d, asks in zip(found, asked, strict=True))
    return [*[None] * known, *wanted]


def _batch(arrays, axes, *, push, pull, known, like):
    (size,) = {x.shape[d] for x, d in zip(arrays, axes, strict=True) if d is not None}
    # Every vector gets the axis, so that every vector of the transposed map has it, too.
    vectors = [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(arrays[known:], axes[known:], strict=True)
    ]
    over = (list(axes[:known]), 0)
    found = linear_p.bind(
        *arrays[:known],
        *vectors,
        push=Map(*(jax.vmap(run, over) for run in push)),
        pull=Map(*(jax.vmap(run, over) for run in pull)),
        known=known,
        like=tuple(core.unmapped_aval(size, 0, aval) for aval in like),
    )
    return found, [0] * len(found)


linear_p.def_impl(_run)
linear_p.def_abstract_eval(lambda *arrays, push, pull, known, like: list(like))
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
mlir.register_lowering(linear_p, _lower)
