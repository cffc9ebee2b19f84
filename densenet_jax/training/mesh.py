"""The mesh of devices, and how batches and states are distributed over it.

The mesh always has two axes.  Examples are split over both.  Parameters and optimiser state are
replicated along `data`.  Along `model` they may be split (FSDP; Zhao et al., 2023): each device
stores one part, and holds the whole parameters only while a step computes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densenet_jax.training.errors import ConfigError

AXES = ("data", "model")
# Preset -> the required platform of the devices, and the sizes of the axes `data` and `model`.
PRESETS = {
    "gpu": ("gpu", (-1, 1)),
    "tpu": ("tpu", (-1, 1)),
    "gpu_fsdp": ("gpu", (1, -1)),
    "tpu_fsdp": ("tpu", (1, -1)),
}


def make_mesh(
    data: int = -1,
    model: int = 1,
    preset: str = "",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh with the axes `data` and `model`; a single device is a mesh of size 1 x 1.

    The devices of a process are neighbours on the mesh.  So every process holds consecutive rows
    of each batch, and the shards of a parameter stay within one machine where that is possible.

    Args:
      data: number of devices along `data`; -1: all that remain.
      model: number of devices along `model`; -1: all that remain.
      preset: a key of `PRESETS`, which sets both numbers; "": none.
      devices: the devices to choose from; None: all devices of all processes.

    Raises:
      ConfigError: the available devices do not suit these sizes.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_place)
    sizes = _sizes(data, model, preset, devices)
    count = sizes[0] * sizes[1]
    if count > len(devices):
        raise ConfigError(
            f"config.mesh.data is {data} and config.mesh.model is {model}, but there are "
            f"{len(devices)} devices; -1 takes all of them."
        )
    used = devices[:count]
    by_process = np.bincount([d.process_index for d in used])
    if count < len(devices) and len({d.process_index for d in devices}) > 1:
        raise ConfigError(
            f"config.mesh uses {count} of {len(devices)} devices; a job of several processes must "
            "use all of them: set config.mesh.data=-1."
        )
    if len(set(by_process[by_process > 0])) > 1:
        raise ConfigError(
            f"The processes of this job have {by_process.tolist()} devices, but all of them must "
            "have the same number: start each with an equal share."
        )
    return Mesh(np.array(used).reshape(sizes), AXES)


def _place(device: jax.Device) -> tuple[int, int, int]:
    """Returns the sort key of a device: its TPU slice, process and number."""
    return getattr(device, "slice_index", None) or 0, device.process_index, device.id


def _sizes(data: int, model: int, preset: str, devices: Sequence[jax.Device]) -> tuple[int, int]:
    """Returns the sizes of the axes, with -1 replaced by a number."""
    if preset:
        platform, sizes = PRESETS[preset]
        if (data, model) != (-1, 1):
            raise ConfigError(
                f"config.mesh.preset={preset!r} already sets both axes; leave out either the "
                "preset, or config.mesh.data and config.mesh.model."
            )
        if devices[0].platform != platform:
            raise ConfigError(
                f"config.mesh.preset is {preset!r}, but JAX sees only {devices[0].platform} "
                f"devices; is jax[{'cuda13' if platform == 'gpu' else 'tpu'}] installed, and the "
                "driver loaded?"
            )
        data, model = sizes
    for key, size in (("data", data), ("model", model)):
        if size != -1 and size < 1:
            raise ConfigError(
                f"config.mesh.{key} is {size}; it must be at least 1, or -1 for all that remain."
            )
    for key, size, other in (("data", data, model), ("model", model, data)):
        if size == -1 == other:
            raise ConfigError("config.mesh.data and config.mesh.model cannot both be -1.")
        if size == -1 and len(devices) % other:
            raise ConfigError(
                f"config.mesh.{AXES[key == 'data']} is {other}, which does not divide the number "
                f"of devices, {len(devices)}."
            )
    whole = len(devices)
    return whole // model if data == -1 else data, whole // data if model == -1 else model


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples, the first dimension, split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_every_device(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree replicated on every device of the mesh.

    Args:
      tree: arrays on the host or any devices, with the same values in every process.
      mesh: the target.
    """
    return jax.device_put(jax.device_get(tree), replicated(mesh))


def state_sharding(mesh: Mesh, state: Any, smallest: int) -> Any:
    """Returns the sharding of each array of a state: replicated, or split over `model`.

    An array is split along its largest dimension that the size of the axis divides.

    Args:
      mesh: the mesh.
      state: a tree of arrays or of `jax.ShapeDtypeStruct`s.
      smallest: number of elements from which on arrays are split.

    Returns:
      a tree of `NamedSharding`, like `state`.
    """
    size = mesh.shape["model"]

    def place(x: Any) -> NamedSharding:
        splittable = [d for d, length in enumerate(x.shape) if length % size == 0]
        if size == 1 or not splittable or np.prod(x.shape) < smallest:
            return replicated(mesh)
        largest = max(splittable, key=lambda d: x.shape[d])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "model"))

    return jax.tree.map(place, state)


def train_step_on(mesh: Mesh, step: Callable[..., Any], sharding: Any) -> Callable[..., Any]:
    """Returns a compiled training step that keeps its state in a sharding, and donates it.

    The whole parameters are gathered before the model and its gradient are computed; afterwards
    each device applies the optimiser to its own part only.

    Args:
      mesh: the mesh.
      step: maps (state, batch) to (state, metrics).
      sharding: as `state_sharding` returns it, or one sharding for all arrays of the state.
    """
    everywhere = replicated(mesh)

    def on_mesh(state: Any, batch: Any) -> Any:
        whole = jax.lax.with_sharding_constraint(state.variables, everywhere)
        return step(state.replace(**whole), batch)

    return jax.jit(on_mesh, donate_argnums=0, out_shardings=(sharding, everywhere))


def eval_step_on(mesh: Mesh, step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled evaluation step that gathers variables in any sharding.

    Args:
      mesh: the mesh.
      step: maps (variables, batch) to a tree of arrays, which will be replicated.
    """
    everywhere = replicated(mesh)

    def on_mesh(variables: Any, batch: Any) -> Any:
        return step(jax.lax.with_sharding_constraint(variables, everywhere), batch)

    return jax.jit(on_mesh, out_shardings=everywhere)


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Checks that a batch can be split evenly over the devices.

    Args:
      key: the configuration's key of the batch size, for the message.
      batch_size: number of examples, over all devices.
      mesh: the mesh.

    Raises:
      ConfigError: the batch size is not a positive multiple of the number of devices.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = max(batch_size // devices, 1) * devices
        raise ConfigError(
            f"config.{key} is {batch_size}; it must be a positive multiple of {devices}, the "
            f"number of devices: {below} or {below + devices}, for example."
        )


def describe(mesh: Mesh, most: int = 32) -> list[str]:
    """Returns lines of text that list the devices of a mesh and their places.

    Args:
      mesh: the mesh.
      most: with more devices than this, there is a line per process instead of one per device;
        and no more than this many lines, besides the first.
    """
    sizes = " x ".join(f"{size} along {axis}" for axis, size in mesh.shape.items())
    processes = sorted({d.process_index for d in mesh.devices.flat})
    lines = [f"mesh: {sizes}, {mesh.size} device(s) in {len(processes)} process(es)"]
    if mesh.size <= most:
        rows = [
            f"{', '.join(f'{axis} {i}' for axis, i in zip(mesh.axis_names, place, strict=True))}: "
            f"{device.platform}:{device.id} {device.device_kind}, process {device.process_index}"
            for place, device in np.ndenumerate(mesh.devices)
        ]
    else:
        rows = []
        for process in processes:
            own = [d for d in mesh.devices.flat if d.process_index == process]
            ids = f"{own[0].platform}:{own[0].id} to {own[-1].id}"
            rows.append(f"process {process}: {len(own)} x {own[0].device_kind}, {ids}")
    if len(rows) > most:
        rows = [*rows[: most - 1], f"... and {len(rows) - most + 1} more processes like these"]
    return lines + [f"  {row}" for row in rows]
