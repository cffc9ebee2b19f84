"""Kernels on several devices: each device runs the kernel on its part of the batch.

XLA cannot split a kernel over devices by itself, so kernels are mapped over the current mesh
(`jax.set_mesh`) with `jax.shard_map`, and their sums are added over the devices.
"""

import math
from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import PartitionSpec


def mesh_axes() -> tuple[tuple[str, ...], int]:
    """Returns the axes of the current mesh that a batch is split over, and over how many devices.

    Along an axis that is mapped already (groups of a batch) there is one device, this one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)
    return axes, math.prod(mesh.shape[name] for name in axes)


def over_devices(
    run: Callable,
    maps: tuple,
    others: tuple,
    returns_maps: bool = True,
    join: Callable = lax.psum,
) -> tuple:
    """Runs kernels on every device of the current mesh, each on its part of the batch.

    Args:
      run: from maps and others to maps, or a matrix [positions, C], then sums over positions.
      maps: arrays [B, H, W, C], split over the mesh along the batch.
      others: arrays that every device has.
      returns_maps: False: run returns sums alone.
      join: maps what all devices return, and the names of the mesh's axes, to that of the batch.

    Returns:
      What run returns, for the whole batch: maps [B, H, W, C], then sums over all devices.
    """

    def local(maps, others):
        results = run(*maps, *others)
        if not returns_maps:
            return [], results
        x, *sums = results
        return [x if x.ndim == 4 else x.reshape(*maps[0].shape[:3], -1)], sums

    axes, devices = mesh_axes()
    if devices == 1:
        x, sums = local(maps, others)
        return *x, *sums

    def everywhere(maps, others):
        x, sums = local(maps, others)
        return x, join(sums, axes)

    x, sums = jax.shard_map(
        everywhere,
        in_specs=(PartitionSpec(axes), PartitionSpec()),
        out_specs=(PartitionSpec(axes), PartitionSpec()),
        axis_names=set(axes),
        check_vma=False,
    )(maps, others)
    return *x, *sums
