"""The mesh of devices, and what lies where on it.

The mesh always has two axes.  Examples are split over both.  Parameters and optimiser state are the
same everywhere along `data`; along `model` they may be split, too (FSDP; Zhao et al., 2023): a
device keeps its part, and has the whole only while a step computes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densenet_jax.training.errors import ConfigError

AXES = ("data", "model")
# Preset -> the platform that the devices must be of, and the sizes of the axes.
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
    """Returns the mesh of axes `data` and `model`; one device is a mesh of one.

    Devices of one process are neighbours on it, so that every process holds a run of rows of each
    batch, and that the shards of a parameter stay within a machine where they fit.

    Args:
      data: number of devices along `data`; -1: as many as there are for it.
      model: likewise.
      preset: one of `PRESETS`, in place of the other two; or "".
      devices: to choose from; None: all devices of all processes.

    Raises:
      ConfigError: there are not the devices for it.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_place)
    sizes = _sizes(data, model, preset, devices)
    count = sizes[0] * sizes[1]
    if count > len(devices):
        raise ConfigError(
            f"config.mesh.data is {data} and config.mesh.model {model}; there are {len(devices)} "
            "devices (-1 takes all of them)."
        )
    used = devices[:count]
    by_process = np.bincount([d.process_index for d in used])
    if count < len(devices) and len({d.process_index for d in devices}) > 1:
        raise ConfigError(
            f"config.mesh takes {count} of {len(devices)} devices; a job of several processes must "
            "take all of them (config.mesh.data=-1)."
        )
    if len(set(by_process[by_process > 0])) > 1:
        raise ConfigError(
            f"The processes of this job have {by_process.tolist()} devices; each must have the "
            "same number."
        )
    return Mesh(np.array(used).reshape(sizes), AXES)


def _place(device: jax.Device) -> tuple[int, int, int]:
    return getattr(device, "slice_index", None) or 0, device.process_index, device.id


def _sizes(data: int, model: int, preset: str, devices: Sequence[jax.Device]) -> tuple[int, int]:
    if preset:
        platform, sizes = PRESETS[preset]
        if (data, model) != (-1, 1):
            raise ConfigError(
                f"config.mesh.preset is {preset!r} and sets the axes; leave out config.mesh.data "
                "and config.mesh.model, or the preset."
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
            raise ConfigError(f"config.mesh.{key} is {size}; it must be at least 1, or -1.")
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
    """Examples are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_every_device(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree that every process has, from wherever, on every device of the mesh."""
    return jax.device_put(jax.device_get(tree), replicated(mesh))


def state_sharding(mesh: Mesh, state: Any, smallest: int) -> Any:
    """Returns where each array of a state lives: on every device, or split over `model`.

    Split is the largest dimension that the axis divides, of arrays of at least `smallest` elements.

    Args:
      state: a tree of arrays or of their shapes.
    """
    size = mesh.shape["model"]

    def place(x) -> NamedSharding:
        splittable = [d for d, length in enumerate(x.shape) if length % size == 0]
        if size == 1 or not splittable or np.prod(x.shape) < smallest:
            return replicated(mesh)
        largest = max(splittable, key=lambda d: x.shape[d])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "model"))

    return jax.tree.map(place, state)


def train_step_on(mesh: Mesh, step: Callable, sharding: Any) -> Callable:
    """Returns a training step that keeps its state where `sharding` says, and donates it.

    Model and gradient see whole parameters: they are gathered before, and each device applies the
    optimiser to its part alone.

    Args:
      step: maps (state, batch) to (state, metrics).
      sharding: as `state_sharding` returns it, or one sharding for all of the state.
    """
    everywhere = replicated(mesh)

    def on_mesh(state, batch):
        whole = jax.lax.with_sharding_constraint(state.variables, everywhere)
        return step(state.replace(**whole), batch)

    return jax.jit(on_mesh, donate_argnums=0, out_shardings=(sharding, everywhere))


def eval_step_on(mesh: Mesh, step: Callable) -> Callable:
    """Returns an evaluation step that takes variables wherever they are, and gathers them."""
    everywhere = replicated(mesh)

    def on_mesh(variables, batch):
        return step(jax.lax.with_sharding_constraint(variables, everywhere), batch)

    return jax.jit(on_mesh, out_shardings=everywhere)


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError if a batch cannot be split evenly over the devices."""
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = max(batch_size // devices, 1) * devices
        raise ConfigError(
            f"config.{key} is {batch_size}; it must be a positive multiple of {devices}, the "
            f"number of devices: {below} or {below + devices}, for example."
        )


def describe(mesh: Mesh, most: int = 32) -> list[str]:
    """Returns what is where, a line a device; a line a process where there are more than `most`."""
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
