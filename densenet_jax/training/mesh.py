"""The mesh of devices, and what lies where on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densenet_jax.training.errors import ConfigError


def make_mesh(data: int = -1) -> Mesh:
    """Returns the mesh: one axis `data` over the devices; one device is a mesh of one.

    Args:
      data: number of devices; -1: all.
    """
    devices = jax.devices()
    if data != -1 and not 1 <= data <= len(devices):
        raise ConfigError(
            f"config.mesh.data is {data}; there are {len(devices)} devices (-1 takes all of them)."
        )
    return Mesh(np.array(devices if data == -1 else devices[:data]), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are split over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError if a batch cannot be split evenly over the mesh and the processes."""
    devices = mesh.shape["data"]
    if batch_size < 1 or batch_size % devices:
        below = max(batch_size // devices, 1) * devices
        raise ConfigError(
            f"config.{key} is {batch_size}; it must be a positive multiple of {devices}, the "
            f"number of devices: {below} or {below + devices}, for example."
        )
