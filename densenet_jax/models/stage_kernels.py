"""The stages of a bottleneck layer on NVIDIA GPUs: which kernel, when, and on how many devices.

`Stages` has the functions of the module `stages`, on fused kernels.  Kernels see one device's part
of the batch: under a mesh (`jax.set_mesh`) they are mapped over its devices, and sums are added.
"""

import math
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from densenet_jax.models import backward_kernels, forward_kernels
from densenet_jax.models.batch_norm import positions

IMPLEMENTATIONS = ("auto", "plain", "kernels", "interpreted")

# H100, H200 and B200: the tiles take more than half of their 227 KB of shared memory, which is more
# than other NVIDIA GPUs have.
COMPUTE_CAPABILITIES = ("9.0", "10.0")


def choose(implementation: str, x: jax.Array, layers: list, dropout_rate: float) -> str:
    """Returns the implementation of a block: "plain", "kernels" or "interpreted".

    "auto" is kernels on the GPUs of `COMPUTE_CAPABILITIES`, on several if there is a current mesh;
    to compile for a GPU that is not there, ask for "kernels".  Where kernels do not apply (types
    of more than 16 bits, layers without bottleneck or wider than a program's registers, dropout,
    more elements than 32 bits can count) it is plain in any case.

    Args:
      implementation: one of `IMPLEMENTATIONS`; "interpreted" runs the kernels as plain JAX, slowly.
      x, layers, dropout_rate: of the block.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation is {implementation!r}; it must be one of {known}.")
    if implementation == "plain":
        return "plain"  # before sizes are compared: in an export the batch's is a symbol
    width, growth = layers[0][-1][1].shape[2:]
    elements = positions(x) * (x.shape[3] + growth * len(layers))
    bottlenecks = all(len(layer) == 2 and layer[0][1].shape[:2] == (1, 1) for layer in layers)
    fits = width <= 256 and growth <= 64 and elements < 2**31
    narrow = x.dtype.itemsize == 2 or (implementation == "interpreted" and x.dtype.itemsize == 4)
    if not (bottlenecks and fits and narrow) or dropout_rate:
        return "plain"
    if implementation != "auto":
        return implementation
    return "kernels" if _on_known_gpus() else "plain"


def _on_known_gpus() -> bool:
    """Returns whether the tiles fit the GPU, and the batch can be split over all there are."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if jax.default_backend() != "gpu" or capability not in COMPUTE_CAPABILITIES:
        return False
    # The compiler cannot split a kernel over devices by itself; see `_over_devices`.
    return jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty


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

            return _over_devices(run, (source,), (gain, shift, kernel))

        def run(source, into, gain, shift, kernel):
            return forward_kernels.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(into)),
                image=source.shape[1:3],
                offset=offset,
                interpret=self.interpret,
            )

        return _over_devices(run, (source, into), (gain, shift, kernel))

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
            return _over_devices(run, maps, (gain, shift, kernel, *correction))

        def run(source, d_out, out, gain, shift, kernel, a, b):
            return backward_kernels.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(d_out), _matrix(out), (a, b)),
                image=source.shape[1:3],
                offset=offset,
                interpret=self.interpret,
            )

        return _over_devices(run, (source, d_out, out), (gain, shift, kernel, *correction))


def _matrix(x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C] as [positions, C]."""
    return x.reshape(-1, x.shape[-1])


def _over_devices(run, maps: tuple, others: tuple) -> tuple:
    """Runs kernels on every device of the current mesh, each on its part of the batch.

    Args:
      run: from maps and others to a matrix [positions, C], then sums over positions.
      maps: arrays [B, H, W, C], split over the mesh along the batch.
      others: arrays that every device has.

    Returns:
      What run returns, for the whole batch: maps [B, H, W, C], then sums over all devices.
    """

    def local(maps, others):
        x, *sums = run(*maps, *others)
        return x.reshape(*maps[0].shape[:3], -1), *sums

    mesh = jax.sharding.get_abstract_mesh()
    # Along an axis that is mapped already (groups of a batch) there is one device, this one.
    axes = tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)
    if math.prod(mesh.shape[name] for name in axes) == 1:
        return local(maps, others)

    def everywhere(maps, others):
        x, *sums = local(maps, others)
        return x, jax.lax.psum(sums, axes)

    x, sums = jax.shard_map(
        everywhere,
        in_specs=(PartitionSpec(axes), PartitionSpec()),
        out_specs=(PartitionSpec(axes), PartitionSpec()),
        axis_names=set(axes),
        check_vma=False,
    )(maps, others)
    return x, *sums
