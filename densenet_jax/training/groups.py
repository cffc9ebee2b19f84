"""Groups of examples that share batch statistics, processed in parallel and one after another.

A step's batch may be too large for one batch normalisation, or for the memory.  So it is divided,
in two stages.  Micro-batches are processed one after another (gradient accumulation); micro-batch a
of A holds the examples a, a + A, a + 2A, ...  Each micro-batch is divided into groups of
consecutive examples.  Every group is a small batch of its own: it is normalised with its own
statistics, and has its own loss and gradients.  The step uses the means over all groups.

So results depend on the sizes of batch and groups, not on the number of devices: wherever the batch
is split evenly, a device finds whole groups, or its part of a single group, among its own examples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from densenet_jax.models.block.statistics import at_least_float32
from densenet_jax.training.errors import ConfigError


class Groups(NamedTuple):
    """How a batch is divided into groups.

    Attributes:
      accumulate: number of micro-batches, which are processed one after another.
      parallel: number of parts of a micro-batch that are processed at the same time on different
        devices; they do not communicate before their gradients are complete.
      in_turn: number of groups in such a part, which are processed one after another.
    """

    accumulate: int = 1
    parallel: int = 1
    in_turn: int = 1

    @property
    def count(self) -> int:  # type: ignore[override]  # hides tuple.count, which nothing here uses
        """Total number of groups."""
        return self.accumulate * self.parallel * self.in_turn

    def describe(self, batch_size: int) -> str:
        """Returns how a batch is divided, as text for the progress line; "" for a single group."""
        if self.count == 1:
            return ""
        each, in_turn = batch_size // self.count, self.accumulate * self.in_turn
        return f" ({self.count} groups of {each}, {self.parallel} at once, {in_turn} in turn)"


ONE_GROUP = Groups()


def plan(
    batch_size: int, devices: int, group_size: int | None = None, accumulate: int = 1
) -> Groups:
    """Returns how a batch is divided into groups.

    Args:
      batch_size: number of examples in a step, over all devices.
      devices: number of devices that the examples are split over.
      group_size: number of examples that share batch statistics; None: all that are processed at
        the same time, that is, a micro-batch.
      accumulate: number of micro-batches, which are processed one after another.

    Raises:
      ConfigError: the sizes do not divide each other.
    """
    if batch_size % (accumulate * devices):
        raise ConfigError(
            f"config.optimizer.accumulate is {accumulate}: on {devices} device(s) "
            f"config.batch_size must be a multiple of {accumulate * devices}, not {batch_size}."
        )
    micro_batch = batch_size // accumulate
    size, own = group_size or micro_batch, micro_batch // devices
    if micro_batch % size or (own % size and size % own):
        raise ConfigError(
            f"config.batch_norm.group_size is {size}; it must divide the {micro_batch} examples "
            f"that are processed at a time, and it must divide the {own} examples of each device "
            f"or be a multiple of {own}. {own} makes one group per device."
        )
    return Groups(accumulate, min(micro_batch // size, devices), max(own // size, 1))


def split_mesh(mesh: Mesh, groups: Groups) -> Mesh:
    """Returns the mesh in which the groups are along `data`, if a group needs several devices.

    The devices of a group, which were neighbours along `data`, are then along a new axis `member`,
    between `data` and `model`.

    Args:
      mesh: a mesh with the axes `data` and `model`.
      groups: how the batch is divided.

    Raises:
      ConfigError: a group would contain only some of the devices along `model`.
    """
    data, model = mesh.devices.shape
    if groups.parallel in (1, data, mesh.size):
        return mesh
    members, remainder = divmod(data, groups.parallel)
    if remainder:
        raise ConfigError(
            f"config.batch_norm.group_size asks for groups of {mesh.size // groups.parallel} "
            f"devices; with {model} along config.mesh.model that must be 1 or a multiple of "
            f"{model}."
        )
    return Mesh(mesh.devices.reshape(groups.parallel, members, model), ("data", "member", "model"))


def _group_axes(groups: Groups) -> tuple[str, ...]:
    """Returns the axes of the current mesh along which groups are processed in parallel."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.axis_names if groups.parallel == mesh.size else mesh.axis_names[:1]
    if math.prod(mesh.shape[axis] for axis in axes) != groups.parallel:
        raise ValueError(
            f"The step has {groups.parallel} parallel groups, but the current mesh (jax.set_mesh) "
            f"is {dict(mesh.shape)}; set the mesh that split_mesh returns."
        )
    return axes


def mean_over_groups(
    function: Callable[[Any, Any, jax.Array | None], Any],
    groups: Groups,
    shared: Any,
    examples: Any,
) -> Any:
    """Returns the mean of a function's results over the groups of a batch.

    Sums are computed in at least float32.  With parallel groups the current mesh (`jax.set_mesh`)
    must be the one that `split_mesh` returns.

    Args:
      function: maps (shared, the examples of a group, the group's number) to a tree of arrays; the
        number is an int32 scalar, or None if there is only one group.
      groups: how the batch is divided.
      shared: a tree of arrays that every group gets whole, such as the variables.
      examples: a tree of arrays [B, ...], of which each group gets its rows.
    """
    if groups.count == 1:
        return function(shared, examples, None)

    # Results are means over examples: their shapes do not depend on how many there are.
    like = jax.eval_shape(function, shared, examples, jax.ShapeDtypeStruct((), jnp.int32))

    def one_after_another(shared: Any, examples: Any, place: jax.Array | int) -> Any:
        """Returns the sums over the groups of one of the parallel parts, number `place`."""
        count = groups.accumulate * groups.in_turn
        micro_batch, part = jnp.divmod(jnp.arange(count), groups.in_turn)
        numbers = (micro_batch * groups.parallel + place) * groups.in_turn + part
        if count == 1:
            return _wide(function(shared, examples, numbers[0]))

        def add(total: Any, group: tuple[Any, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, _wide(function(shared, *group))), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, at_least_float32(x.dtype)), like)
        cut = jax.tree.map(lambda x: _cut(x, groups), examples)
        return lax.scan(add, zeros, (cut, numbers))[0]

    if groups.parallel == 1:
        total = one_after_another(shared, examples, 0)
    else:
        axes = _group_axes(groups)
        total = jax.shard_map(
            lambda shared, examples: lax.psum(
                one_after_another(shared, examples, lax.axis_index(axes)), axes
            ),
            in_specs=(PartitionSpec(), PartitionSpec(axes)),
            out_specs=PartitionSpec(),
            axis_names=set(axes),
            check_vma=False,
        )(shared, examples)
    return jax.tree.map(lambda x, like: (x / groups.count).astype(like.dtype), total, like)


def _cut(x: jax.Array, groups: Groups) -> jax.Array:
    """Returns x [B, ...] as the groups that follow one another, [groups, examples, ...]."""
    micro_batches = x.reshape(-1, groups.accumulate, *x.shape[1:]).swapaxes(0, 1)
    return micro_batches.reshape(groups.accumulate * groups.in_turn, -1, *x.shape[1:])


def _wide(tree: Any) -> Any:
    """Returns a tree whose arrays are converted to at least float32."""
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), tree)
