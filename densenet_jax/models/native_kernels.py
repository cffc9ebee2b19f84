"""The stages of a bottleneck layer as fused CPU kernels, in float32.

XLA:CPU writes a normalised input to memory and reads it again, and measures an output in a pass of
its own.  Here a stage normalises while it packs its input for the product, measures its output
while that is in registers, and gives all its gradients in one pass.  The folder `native` has them
in C++; the functions below have the meaning of those in `stages`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.models import native_library
from densenet_jax.models.batch_norm import Moments
from densenet_jax.models.kernel_tools import over_devices


def forward(source, gain, shift, kernel, *, into=None, offset=0, dropout=None):
    """See `stages.forward`; 1x1 stages make a new array, 3x3 stages write into a buffer."""
    assert dropout is None
    assert (into is None) == (kernel.shape[:2] == (1, 1))
    d = kernel.shape[3]
    if into is None:

        def run(source, *vectors):
            out = _shape(*source.shape[:3], d), _shape(2, d)
            y, sums = _call("Forward1x1", out)(source, *vectors)
            return y, *sums

        return over_devices(run, (source,), (gain, shift, kernel))

    def run(source, into, *vectors):
        out = _shape(*into.shape), _shape(2, d)
        y, sums = _call("Forward3x3", out, aliases={4: 0})(source, *vectors, into, offset=offset)
        return y, *sums

    return over_devices(run, (source, into), (gain, shift, kernel))


def backward(
    source, gain, shift, kernel, *, d_out, out, correction, offset=0, d_source=None, dropout=None
):
    """See `stages.backward`; 1x1 stages add to d_source, 3x3 stages return their own."""
    assert dropout is None
    assert (d_source is not None) == (kernel.shape[:2] == (1, 1))
    others = (gain, shift, kernel, *correction)
    c = kernel.shape[2]
    gradients = _shape(*kernel.shape), _shape(c), _shape(c)
    if d_source is not None:

        def run(source, d_out, out, d_source, gain, shift, kernel, *correction):
            call = _call("Backward1x1", (_shape(*d_source.shape), *gradients), aliases={8: 0})
            arrays = source, gain, shift, kernel, d_out, out, *correction, d_source
            return call(*arrays, offset=0)

        return over_devices(run, (source, d_out, out, d_source), others)

    def run(source, d_out, out, gain, shift, kernel, *correction):
        call = _call("Backward3x3", (_shape(*source.shape[:3], c), *gradients))
        return call(source, gain, shift, kernel, d_out, out, *correction, offset=offset)

    return over_devices(run, (source, d_out, out), others)


def evaluate(x, layers):
    """Returns a block's features; see `dense_block.evaluate`."""

    def run(x, layers):
        room = sum(second[1].shape[3] for _, second in layers)
        out = (_shape(*x.shape[:3], x.shape[3] + room),)
        return _call("BlockEvaluate", out)(x, *jax.tree.leaves(layers))

    return over_devices(run, (x,), (layers,))[0]


def block_forward(x, statistics, layers, epsilon):
    """See `block_gradient.forward`; on one device, in one call."""
    growth = sum(second[1].shape[3] for _, second in layers)
    positions, c = x.shape[:3], x.shape[3] + growth
    out = [_shape(*positions, c), _shape(c), _shape(c)]
    for (_, kernel), _ in layers:
        width = kernel.shape[3]
        out += [_shape(*positions, width), _shape(width), _shape(width)]
    parameters = [v for layer in layers for v in _parameters(layer)]
    call = _call("BlockForward", tuple(out))
    features, mean, var, *rest = call(x, *statistics, *parameters, epsilon=epsilon)
    bottlenecks = [(y, Moments(*moments)) for y, *moments in zip(*[iter(rest)] * 3, strict=True)]
    return features, Moments(mean, var), bottlenecks


def block_backward(features, statistics, bottlenecks, layers, d_features, d_statistics, epsilon):
    """See `block_gradient.backward`; on one device, in one call.

    Returns:
      The gradients of features (of those that no layer made), of statistics and of each layer.
    """
    c, between = features.shape[3], bottlenecks[0][0]
    out, arrays = [_shape(*features.shape), _shape(c), _shape(c), _shape(*between.shape)], []
    for layer, (y, moments) in zip(reversed(layers), reversed(bottlenecks), strict=True):
        arrays += [*_parameters(layer), y, *moments]
        out += [_shape(*v.shape) for v in _parameters(layer)]
    call = _call("BlockBackward", tuple(out), aliases={0: 0})
    arrays = (d_features, *d_statistics, features, *statistics, *arrays)
    d_features, mean, var, _, *rest = call(*arrays, epsilon=epsilon)
    pairs = [
        ({"scale": scale, "bias": bias}, kernel)
        for scale, bias, kernel in zip(*[iter(rest)] * 3, strict=True)
    ]
    gradients = [list(pair) for pair in zip(*[iter(pairs)] * 2, strict=True)]
    return d_features, Moments(mean, var), gradients[::-1]


def _parameters(layer):
    return [v for norm, kernel in layer for v in (norm["scale"], norm["bias"], kernel)]


_NUMBERS = {int: np.int64, float: np.float64}  # as the library expects them


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(function: str, results: tuple, aliases: dict[int, int] | None = None):
    """Returns a function of arrays and numbers that runs one of the library's."""
    call = jax.ffi.ffi_call(
        native_library.target(function),
        results,
        vmap_method="sequential",
        input_output_aliases=aliases,
    )

    def run(*arrays, **numbers):
        return call(
            *(array.astype(jnp.float32) for array in arrays),
            **{name: _NUMBERS[type(number)](number) for name, number in numbers.items()},
        )

    return run
