"""The stages of a bottleneck layer: which implementation, when; and those on NVIDIA GPUs.

An implementation has the functions of the module `stages`.  Fused kernels see one device's part of
the batch: under a mesh (`jax.set_mesh`) they are mapped over its devices, and sums are added.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from densenet_jax.models import (
    backward_kernels,
    forward_kernels,
    native_kernels,
    native_library,
    native_stem,
    pooling,
    stages,
    stem,
)
from densenet_jax.models.batch_norm import positions
from densenet_jax.models.kernel_tools import mesh_axes, over_devices
from densenet_jax.models.stages import widened

IMPLEMENTATIONS = ("auto", "plain", "kernels", "interpreted", "native")

# H100, H200 and B200: the tiles take more than half of their 227 KB of shared memory, which is more
# than other NVIDIA GPUs have.
COMPUTE_CAPABILITIES = ("9.0", "10.0")


def choose(implementation: str, x: jax.Array, layers: list, dropout_rate: float) -> str:
    """Returns the implementation of a block: one of `IMPLEMENTATIONS` but "auto".

    "auto" is "kernels" on the GPUs of `COMPUTE_CAPABILITIES` and "native" on a CPU, on several
    devices if there is a current mesh; to compile for a GPU that is not there, ask for "kernels".
    Where kernels do not apply it is "plain" in any case: layers without bottleneck, dropout; on
    GPUs types of more than 16 bits, layers wider than a program's registers, more elements than
    32 bits can count; on CPUs types other than float32, and machines without a C++ compiler.

    Args:
      implementation: one of `IMPLEMENTATIONS`; "interpreted" runs the GPU's kernels as plain JAX,
        slowly.
      x, layers, dropout_rate: of the block.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation is {implementation!r}; it must be one of {known}.")
    if implementation == "plain":
        return "plain"  # before sizes are compared: in an export the batch's is a symbol
    bottlenecks = all(len(layer) == 2 and layer[0][1].shape[:2] == (1, 1) for layer in layers)
    if not bottlenecks or dropout_rate:
        return "plain"
    if implementation == "auto":
        implementation = _fastest(x.shape[0])
    if implementation == "native":
        fits = _native_fits(x)
    else:
        width, growth = layers[0][-1][1].shape[2:]
        elements = positions(x) * (x.shape[3] + growth * len(layers))
        wide = implementation == "interpreted" and x.dtype.itemsize == 4
        fits = width <= 256 and growth <= 64 and elements < 2**31
        fits &= x.dtype.itemsize == 2 or wide
    return implementation if fits else "plain"


def _fastest(batch_size: int) -> str:
    """Returns the implementation for this backend, if the batch can be split over all devices."""
    # The compiler cannot split a kernel over devices by itself; see `over_devices`.
    no_mesh = jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty
    if no_mesh or batch_size % mesh_axes()[1]:
        return "plain"
    if jax.default_backend() == "cpu":
        return "native"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    on_gpu = jax.default_backend() == "gpu" and capability in COMPUTE_CAPABILITIES
    return "kernels" if on_gpu else "plain"


def find(implementation: str):
    """Returns what has `forward` and `backward` of a stage, and kernels' `evaluate` of a block."""
    if implementation in ("plain", "native"):
        return {"plain": stages, "native": native_kernels}[implementation]
    return Stages(interpret=implementation == "interpreted")


def in_one_call(implementation: str) -> bool:
    """Returns whether a whole block is one call in training, too: on one device sums are final."""
    return implementation == "native" and mesh_axes()[1] == 1


TWINS = {
    stem.measured_convolution: native_stem.measured_convolution,
    pooling.norm_relu_max_pool: native_stem.norm_relu_max_pool,
    pooling.norm_relu_average_pool: native_stem.norm_relu_average_pool,
}


def twin(function: Callable, implementation: str, x: jax.Array) -> Callable:
    """Returns the function itself, or, where "native" is chosen for x, its twin in `TWINS`."""
    if function not in TWINS or implementation not in ("auto", "native"):
        return function
    native = implementation == "native" or _fastest(x.shape[0]) == "native"
    return TWINS[function] if native and _native_fits(x) else function


def _native_fits(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and native_library.available()


class Stages(NamedTuple):
    """The functions of `stages`, for 1x1 stages into a new array and 3x3 stages into a buffer."""

    interpret: bool = False

    def forward(self, source, gain, shift, kernel, *, into=None, offset=0, dropout=None):
        assert dropout is None
        assert (into is None) == (kernel.shape[:2] == (1, 1))
        if into is None:

            def run(source, gain, shift, kernel):
                return forward_kernels.conv1x1(
                    _matrix(source), gain, shift, kernel[0, 0], interpret=self.interpret
                )

            return over_devices(run, (source,), (gain, shift, kernel))

        def run(source, into, gain, shift, kernel):
            return forward_kernels.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(into)),
                image=source.shape[1:3],
                offset=offset,
                interpret=self.interpret,
            )

        return over_devices(run, (source, into), (gain, shift, kernel))

    def backward(
        self,
        source,
        gain,
        shift,
        kernel,
        *,
        d_out,
        out,
        correction,
        offset=0,
        d_source=None,
        dropout=None,
    ):
        assert dropout is None
        assert (d_source is not None) == (kernel.shape[:2] == (1, 1))
        if d_source is not None:

            def run(source, d_out, out, d_source, gain, shift, kernel, a, b):
                dx, dw, *sums = backward_kernels.conv1x1(
                    *(_matrix(source), gain, shift, kernel[0, 0], _matrix(d_out), _matrix(out)),
                    *((a, b), _matrix(d_source)),
                    interpret=self.interpret,
                )
                return dx, dw[None, None], *sums

            maps = source, d_out, out, d_source
            return over_devices(run, maps, (gain, shift, kernel, *correction))

        def run(source, d_out, out, gain, shift, kernel, a, b):
            return backward_kernels.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(d_out), _matrix(out), (a, b)),
                image=source.shape[1:3],
                offset=offset,
                interpret=self.interpret,
            )

        return over_devices(run, (source, d_out, out), (gain, shift, kernel, *correction))

    def evaluate(self, x, layers):
        """See `native_kernels.evaluate`."""
        features, c = widened(x, layers), x.shape[3]
        for (first, kernel1), (second, kernel2) in layers:
            between, *_ = self.forward(features, *first, kernel1)
            features, *_ = self.forward(between, *second, kernel2, into=features, offset=c)
            c += kernel2.shape[3]
        return features


def _matrix(x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C] as [positions, C]."""
    return x.reshape(-1, x.shape[-1])
