"""Which implementation computes a dense block, and when.

Every implementation computes the same function, that of `reference`, and is tested against it:

  reference    plain JAX in the order of the paper, differentiated by JAX (`block.reference`)
  plain        plain JAX with the gradient written by hand (`block.gradient`, `block.plain`)
  gpu          the stages of `block.plain` as fused kernels for NVIDIA GPUs (`models.gpu`)
  interpreted  the kernels of `gpu` run as plain JAX on any device, slowly, for tests
  cpu          the same stages, and whole blocks, as C++ kernels (`models.cpu`)
  cpu_bfloat16 the same with the operands of products rounded to bfloat16
  tpu          the same stages in plain JAX, in the forms that XLA:TPU fuses (`models.tpu`)
  auto         the fastest of these that runs here

This module only chooses.  The GPU kernels are imported when one is chosen, not before.
"""

import functools
import logging
import sys
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
from densenet_jax.models.tpu import stages as tpu_stages
from densenet_jax.models.tpu import transitions as tpu_transitions

CPU = {"cpu": "float32", "cpu_bfloat16": "bfloat16"}  # and the type of their products
IMPLEMENTATIONS = ("auto", "reference", "plain", "gpu", "interpreted", *CPU, "tpu")
# Names of earlier versions, which configurations of runs still have.
EARLIER_NAMES = {"native": "cpu", "kernels": "gpu"}

COMPUTE_CAPABILITY = 8.0  # the oldest that the GPU kernels' compiler supports: A100 and newer

# Stages of these are operations that JAX differentiates, with any activation.
PLAIN_JAX = ("plain", "tpu")

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
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> str:
    """Returns the implementation that computes a block: one of `IMPLEMENTATIONS` but "auto".

    "auto" is "cpu" on a CPU, "tpu" on a TPU for types of 16 bits, and on an NVIDIA GPU the faster
    of "gpu" and "plain" (`gpu.trial`); on several devices kernels need a current mesh
    (`jax.set_mesh`). "cpu" is "cpu_bfloat16" for a network in bfloat16 on a processor that
    multiplies in it (`on_cpu`). To compile for a GPU that is not there, ask for "gpu". On a GPU the
    result is "gpu without ..." if some kernels do not work there. Where the kernels do not apply,
    the result is "plain" whatever was asked for: sizes that are symbols
    (`jax.export.symbolic_shape`), dropout, an activation other than ReLU (a warning says so; "tpu"
    has all); layers without bottleneck on GPUs, on TPUs and on several devices; on GPUs types of
    more than 16 bits, layers too wide for a program's registers, more elements than 32 bits can
    count; on CPUs types other than float32 (but see `computed_type`), and machines without a C++
    compiler.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      x: the block's input [B, H, W, C], or its type.
      layers: the block's layers, as `dense_block.train` takes them.
      dropout_rate: the largest rate of dropout or drop path; 0: neither.
      activation: see `models.activation`.
      dtype: of the network, see `computed_type`.
    """
    implementation = check_implementation(implementation)
    if implementation in ("reference", "plain"):
        return implementation
    if not are_numbers(x.shape):
        return "plain"
    if for_tpu(implementation, x):
        return "plain" if dropout_rate or not _bottlenecks(layers) else "tpu"
    if dropout_rate or not _kernels_have(activation, implementation):
        return "plain"
    automatic = implementation == "auto"
    if automatic:
        implementation = _fastest(x.shape[0])
    bottlenecks = _bottlenecks(layers)
    if implementation in CPU:
        implementation = on_cpu(implementation, dtype)
        fits = _fits_cpu(x, implementation) and (bottlenecks or in_one_call(implementation))
    elif not bottlenecks:
        return "plain"
    else:
        width, growth = layers[0][-1][1].shape[2:]
        elements = positions(x) * (x.shape[3] + growth * len(layers))
        wide = implementation == "interpreted" and x.dtype.itemsize == 4
        fits = width <= 256 and growth <= 64 and elements < 2**31
        fits &= x.dtype.itemsize == 2 or wide
        if fits and implementation == "gpu" and jax.default_backend() == "gpu":
            return _tried(x.dtype.name, width, growth, automatic)
    return implementation if fits else "plain"


def find(implementation: str):
    """Returns the object with `forward` and `backward` of a stage, and kernels' `evaluate`.

    Args:
      implementation: as `choose` returned it; not "reference", which has no stages.
    """
    if implementation in CPU:
        return cpu_stages.Stages(CPU[implementation])
    if implementation in PLAIN_JAX:
        return {"plain": plain, "tpu": tpu_stages}[implementation]
    from densenet_jax.models.gpu.stages import Stages

    return Stages.of(implementation)


def in_one_call(implementation: str) -> bool:
    """Returns whether a whole block is one call in training: on one device its sums are final."""
    return implementation in CPU and mesh_axes()[1] == 1


def has_pooled_stage(implementation: str) -> bool:
    """Returns whether the stages compute transitions as fast as blocks: the GPU kernels."""
    return implementation not in (*PLAIN_JAX, "reference", *CPU)


def on_cpu(implementation: str, dtype: jax.typing.DTypeLike) -> str:
    """Returns which of the CPU kernels, `CPU`, compute a network.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      dtype: of the network.
    """
    wanted = implementation == "cpu_bfloat16"
    bfloat16 = wanted or (jnp.dtype(dtype) == jnp.bfloat16 and library.has_bfloat16())
    return "cpu_bfloat16" if bfloat16 else "cpu"


def around_blocks(
    function: Callable,
    implementation: str,
    x: jax.Array,
    activation: str = "relu",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Callable:
    """Returns a function of stem or transition, or its form for CPUs or TPUs where chosen for x.

    Args:
      function: one whose name is in `CPU_STEM` or `models.tpu.transitions`; any other is returned
        unchanged.
      implementation, activation, dtype: as of `choose`.
      x: the function's input [B, H, W, C].
    """
    implementation = check_implementation(implementation)
    if for_tpu(implementation, x):
        return getattr(tpu_transitions, function.__name__, function)
    exists = function.__name__ in CPU_STEM and implementation in ("auto", *CPU)
    exists = exists and are_numbers(x.shape)
    if not exists or not _kernels_have(activation, implementation):
        return function
    if implementation not in CPU and _fastest(x.shape[0]) != "cpu":
        return function
    implementation = on_cpu(implementation, dtype)
    if not _fits_cpu(x, implementation):
        return function
    kernel = getattr(cpu_stem, function.__name__)
    if implementation == "cpu":
        return kernel
    return functools.partial(kernel, products=CPU[implementation])


def for_tpu(implementation: str, x: jax.Array) -> bool:
    """Returns whether the forms for TPUs compute x: asked for, or "auto" on a TPU with 16 bits.

    Their products replace sums, and a TPU multiplies with 16 bits unless it is told otherwise.
    """
    if not are_numbers(x.shape):
        return False
    automatic = implementation == "auto" and x.dtype.itemsize == 2
    return implementation == "tpu" or (automatic and jax.default_backend() == "tpu")


def _bottlenecks(layers: Sequence) -> bool:
    return all(len(layer) == 2 and layer[0][1].shape[:2] == (1, 1) for layer in layers)


def computed_type(
    dtype: jax.typing.DTypeLike, implementation: str, batch_size: int, activation: str = "relu"
) -> jax.typing.DTypeLike:
    """Returns the type of a network's maps: float32 where the CPU kernels replace 16 bits.

    Their products are in bfloat16 on processors that multiply in it.  Elsewhere, and for float16,
    they are in float32, which is more than twice as fast as plain JAX with 16 bits; the log says so
    once.

    Args:
      dtype: the type that was asked for.
      implementation, activation: as of `choose`.
      batch_size: images in a batch.
    """
    implementation = check_implementation(implementation)
    kernels = implementation in ("auto", *CPU) and are_numbers([batch_size])
    if jnp.dtype(dtype).itemsize != 2 or not kernels or not is_relu(activation):
        return dtype
    if implementation not in CPU and _fastest(batch_size) != "cpu":
        return dtype
    products = CPU[on_cpu(implementation, dtype)]
    if not library.available(products):
        return dtype
    if products != jnp.dtype(dtype):
        _say_float32(jnp.dtype(dtype).name)
    return jnp.float32


@functools.cache  # once a process
def _say_float32(dtype: str) -> None:
    logging.getLogger(__name__).warning(
        "dtype=%s: the CPU kernels compute in float32, which is faster here.", dtype
    )


def _fastest(batch_size: int) -> str:
    """Returns the implementation for this backend, if the batch can be split over all devices."""
    # The compiler cannot split a kernel over devices by itself; see `block.devices`.
    devices = jax.device_count()
    if devices > 1 and jax.sharding.get_abstract_mesh().empty:
        if jax.default_backend() == "gpu" and batch_size >= devices:
            _say_plain(
                f"there are {devices} GPUs and no mesh; call jax.set_mesh to use the kernels"
            )
        return "plain"
    if batch_size % mesh_axes()[1]:
        return "plain"
    return {"cpu": "cpu", "gpu": "gpu"}.get(jax.default_backend(), "plain")


def _tried(dtype: str, width: int, growth: int, automatic: bool) -> str:
    """Returns "gpu", "gpu without ..." or "plain", after a trial of the kernels on this GPU.

    Args:
      dtype: name of the type of the feature maps.
      width, growth: maps after the first and second convolution of a layer.
      automatic: whether the kernels must also be faster than plain JAX.
    """
    from densenet_jax.models.gpu import tiles

    if tiles.compiling_elsewhere():
        return "gpu"
    kinds = {device.device_kind: device for device in jax.devices()}
    capabilities = {k: getattr(d, "compute_capability", "") for k, d in kinds.items()}
    for kind, capability in capabilities.items():
        if not _is_number(capability) or float(capability) < COMPUTE_CAPABILITY:
            _say_plain(
                f"the fused kernels need an NVIDIA GPU of compute capability {COMPUTE_CAPABILITY} "
                f"or newer, and this is {kind} ({capability or 'unknown'})"
            )
            return "plain"
    if len(kinds) > 1:
        _say_plain(f"the GPUs differ ({', '.join(sorted(kinds))})")
        return "plain"
    try:
        from densenet_jax.models.gpu import trial
    except ImportError as error:
        _say_plain(f"the fused kernels need Pallas ({error})")
        return "plain"
    verdict = trial.verdict(dtype, width, growth)
    works = len(verdict.faults) < len(trial.KERNELS) and (verdict.faster or not automatic)
    return trial.Stages().without(verdict.faults) if works else "plain"


def trials() -> dict[str, dict]:
    """Returns what trials on this GPU found: {sizes: {"faults", "seconds"}}, see `gpu.trial`."""
    trial = sys.modules.get("densenet_jax.models.gpu.trial")
    found = {} if trial is None else trial.VERDICTS
    return {
        f"{dtype}, width {width}, growth rate {growth}": verdict._asdict()
        for (dtype, width, growth), verdict in found.items()
    }


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _fits_cpu(x: jax.Array, implementation: str) -> bool:
    return x.dtype == jnp.float32 and library.available(CPU[implementation])


def _kernels_have(activation: str, implementation: str) -> bool:
    """Returns whether the kernels compute an activation; says once if they were asked for it."""
    if is_relu(activation):
        return True
    if implementation != "auto":
        _say_plain(f"the kernels of {implementation!r} have ReLU and not {activation!r}")
    return False


@functools.cache  # once a process
def _say_plain(why: str) -> None:
    logging.getLogger(__name__).warning("Plain JAX computes the dense blocks: %s.", why)
