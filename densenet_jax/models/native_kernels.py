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
            return call(source, gain, shift, kernel, d_out, out, *correction, d_source)

        return over_devices(run, (source, d_out, out, d_source), others)

    def run(source, d_out, out, gain, shift, kernel, *correction):
        call = _call("Backward3x3", (_shape(*source.shape[:3], c), *gradients))
        return call(source, gain, shift, kernel, d_out, out, *correction, offset=offset)

    return over_devices(run, (source, d_out, out), others)


def layer(features, first, second, offset):
    """Returns a block's buffer with the maps of a bottleneck layer at channel `offset`.

    Args:
      features: [B, H, W, > offset]; the layer reads the channels before its own.
      first, second: each ((gain, shift), kernel): what `forward` takes.
    """
    vectors = (*first[0], first[1], *second[0], second[1])

    def run(features, *vectors):
        call = _call("Layer", (_shape(*features.shape),), aliases={0: 0})
        return call(features, *vectors, offset=offset)

    (features,) = over_devices(run, (features,), vectors)
    return features


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
            **{name: np.int64(number) for name, number in numbers.items()},
        )

    return run
