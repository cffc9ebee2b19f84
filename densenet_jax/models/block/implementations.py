"""Which implementation computes a dense block, and when.

Every implementation computes the same function, that of `reference`, and is tested against it:

  reference    plain JAX in the order of the paper, differentiated by JAX (`block.reference`)
  plain        plain JAX with the gradient written by hand (`block.gradient`, `block.plain`)
  gpu          the stages of `block.plain` as fused kernels for NVIDIA GPUs (`models.gpu`)
  interpreted  the kernels of `gpu` run as plain JAX on any device, slowly, for tests
  cpu          the same stages, and whole blocks, as C++ kernels (`models.cpu`)
  auto         the fastest of these that runs here

This module only chooses.  The GPU kernels are imported when one is chosen, not before.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from densenet_jax.models.activation import is_relu
from densenet_jax.models.block import plain
from densenet_jax.models.block.devices import mesh_axes
from densenet_jax.models.block.statistics import positions
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu import stages as cpu_stages
from densenet_jax.models.cpu import stem as cpu_stem
from densenet_jax.models.inputs import are_numbers, check_name

IMPLEMENTATIONS = ("auto", "reference", "plain", "gpu", "interpreted", "cpu")
# Names of earlier versions, which configurations of runs still have.
EARLIER_NAMES = {"native": "cpu", "kernels": "gpu"}

# H100, H200 and B200: the tiles take more than half of their 227 KB of shared memory, which is more
# than other NVIDIA GPUs have.
COMPUTE_CAPABILITIES = ("9.0", "10.0")

# Functions around the blocks that `models.cpu.stem` has kernels for, under the same names.
CPU_STEM = ("measured_convolution", "norm_act_max_pool", "norm_act_average_pool")


def check_implementation(name: str) -> str:
    """Returns the name of an implementation, an earlier one translated.

    Raises:
      ValueError: there is none of this name; the message lists the names.
    """
    name = EARLIER_NAMES.get(name, name)
    check_name("implementation", name, IMPLEMENTATIONS)
    return name


def choose(
    implementation: str,
    x: jax.Array,
    layers: Sequence,
    dropout_rate: float,
    activation: str = "relu",
) -> str:
    """Returns the implementation that computes a block: one of `IMPLEMENTATIONS` but "auto".

    "auto" is "gpu" on the GPUs of `COMPUTE_CAPABILITIES` and "cpu" on a CPU; on several devices
    only under a current mesh (`jax.set_mesh`).  To compile for a GPU that is not there, ask for
    "gpu".  Where the kernels do not apply, the result is "plain" whatever was asked for: sizes
    that are symbols (`jax.export.symbolic_shape`), layers
    without bottleneck, dropout, an activation other than ReLU (a warning says so); on GPUs types
    of more than 16 bits, layers too wide for a program's registers, more elements than 32 bits can
    count; on CPUs types other than float32, and machines without a C++ compiler.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      x: the block's input [B, H, W, C].
      layers: the block's layers, as `dense_block.train` takes them.
      dropout_rate: the largest rate of dropout or drop path; 0: neither.
      activation: see `models.activation`.
    """
    implementation = check_implementation(implementation)
    if implementation in ("reference", "plain"):
        return implementation
    if not are_numbers(x.shape):
        return "plain"
    bottlenecks = all(len(layer) == 2 and layer[0][1].shape[:2] == (1, 1) for layer in layers)
    if not bottlenecks or dropout_rate or not _kernels_have(activation, implementation):
        return "plain"
    if implementation == "auto":
        implementation = _fastest(x.shape[0])
    if implementation == "cpu":
        fits = _fits_cpu(x)
    else:
        width, growth = layers[0][-1][1].shape[2:]
        elements = positions(x) * (x.shape[3] + growth * len(layers))
        wide = implementation == "interpreted" and x.dtype.itemsize == 4
        fits = width <= 256 and growth <= 64 and elements < 2**31
        fits &= x.dtype.itemsize == 2 or wide
    return implementation if fits else "plain"


def find(implementation: str):
    """Returns what has `forward` and `backward` of a stage, and kernels' `evaluate` of a block.

    Args:
      implementation: as `choose` returned it; not "reference", which has no stages.
    """
    if implementation in ("plain", "cpu"):
        return {"plain": plain, "cpu": cpu_stages}[implementation]
    from densenet_jax.models.gpu.stages import Stages

    return Stages(interpret=implementation == "interpreted")


def in_one_call(implementation: str) -> bool:
    """Returns whether a whole block is one call in training, too: on one device sums are final."""
    return implementation == "cpu" and mesh_axes()[1] == 1


def around_blocks(
    function: Callable, implementation: str, x: jax.Array, activation: str = "relu"
) -> Callable:
    """Returns a function of stem or transition, or its CPU kernel where "cpu" is chosen for x.

    Args:
      function: one whose name is in `CPU_STEM`; any other is returned as it is.
      implementation, activation: as of `choose`.
      x: the function's input [B, H, W, C].
    """
    implementation = check_implementation(implementation)
    kernel = function.__name__ in CPU_STEM and implementation in ("auto", "cpu")
    kernel = kernel and are_numbers(x.shape)
    if not kernel or not _kernels_have(activation, implementation):
        return function
    on_cpu = implementation == "cpu" or _fastest(x.shape[0]) == "cpu"
    return getattr(cpu_stem, function.__name__) if on_cpu and _fits_cpu(x) else function


def _fastest(batch_size: int) -> str:
    """Returns the implementation for this backend, if the batch can be split over all devices."""
    # The compiler cannot split a kernel over devices by itself; see `block.devices`.
    no_mesh = jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty
    if no_mesh or batch_size % mesh_axes()[1]:
        return "plain"
    if jax.default_backend() == "cpu":
        return "cpu"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    on_gpu = jax.default_backend() == "gpu" and capability in COMPUTE_CAPABILITIES
    return "gpu" if on_gpu else "plain"


def _fits_cpu(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and library.available()


def _kernels_have(activation: str, implementation: str) -> bool:
    """Returns whether the kernels compute an activation; says once if they were asked for it."""
    if is_relu(activation):
        return True
    if implementation != "auto":
        _say_plain(activation, implementation)
    return False


@functools.cache  # once a process
def _say_plain(activation: str, implementation: str) -> None:
    logging.getLogger(__name__).warning(
        "implementation=%r has ReLU compiled in; with activation %r plain JAX runs instead.",
        implementation,
        activation,
    )
