"""Groups of examples that share batch statistics: side by side on devices, in turn on each.

A step's batch may be too large for one batch norm, or for the memory.  Micro-batch a of A holds the
examples a, a + A, a + 2A, ...; micro-batches follow one another (gradient accumulation).  Each is
cut into groups of consecutive examples.  Every group is a small batch of its own: normalised with
its own statistics, with its own loss and gradients.  The step uses the means over the groups.

So results depend on the sizes of batch and groups, not on the devices: each device finds whole
groups, or its part of one, among its own examples, wherever the batch is split evenly.
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
    """How a batch is cut up.

    Attributes:
      accumulate: micro-batches, one after another.
      parallel: parts of a micro-batch on different devices; none communicates with another before
        its gradients are complete.
      in_turn: groups in such a part, one after another.
    """

    accumulate: int = 1
    parallel: int = 1
    in_turn: int = 1

    @property
    def count(self) -> int:
        """Groups in all."""
        return self.accumulate * self.parallel * self.in_turn

    def describe(self, batch_size: int) -> str:
        """Returns how a batch is cut up, in words; nothing for one group."""
        if self.count == 1:
            return ""
        each, in_turn = batch_size // self.count, self.accumulate * self.in_turn
        return f" ({self.count} groups of {each}, {self.parallel} at once, {in_turn} in turn)"


ONE_GROUP = Groups()


def plan(
    batch_size: int, devices: int, group_size: int | None = None, accumulate: int = 1
) -> Groups:
    """Returns how a batch is cut up.

    Args:
      batch_size: examples in a step, over all devices.
      devices: over which examples are split.
      group_size: examples that share statistics; None: all that are processed at the same time.
      accumulate: micro-batches, one after another.

    Raises:
      ConfigError: sizes that do not divide each other.
    """
    if batch_size % (accumulate * devices):
        raise ConfigError(
            f"config.optimizer.accumulate is {accumulate}: on {devices} device(s) that asks for a "
            f"config.batch_size that is a multiple of {accumulate * devices}, not {batch_size}."
        )
    micro_batch = batch_size // accumulate
    size, own = group_size or micro_batch, micro_batch // devices
    if micro_batch % size or (own % size and size % own):
        raise ConfigError(
            f"config.batch_norm.group_size is {size}; it must divide the {micro_batch} examples "
            f"that are processed at a time, and divide the {own} of each device or be a multiple "
            f"of them. {own} is one group a device."
        )
    return Groups(accumulate, min(micro_batch // size, devices), max(own // size, 1))


def split_mesh(mesh: Mesh, groups: Groups) -> Mesh:
    """Returns the mesh on which groups of several devices lie along `data`.

    The devices of a group, which have been neighbours along `data`, lie along a new axis `member`.

    Args:
      mesh: of axes `data` and `model`.

    Raises:
      ConfigError: a group would have only some of the devices along `model`.
    """
    data, model = mesh.devices.shape
    if groups.parallel in (1, data, mesh.size):
        return mesh
    members, remainder = divmod(data, groups.parallel)
    if remainder:
        raise ConfigError(
            f"config.batch_norm.group_size asks for groups of {mesh.size // groups.parallel} "
            f"devices; with {model} along config.mesh.model that must be 1 or a multiple of it."
        )
    return Mesh(mesh.devices.reshape(groups.parallel, members, model), ("data", "member", "model"))


def _group_axes(groups: Groups) -> tuple[str, ...]:
    """Returns the axes of the current mesh along which groups lie side by side."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.axis_names if groups.parallel == mesh.size else mesh.axis_names[:1]
    if math.prod(mesh.shape[axis] for axis in axes) != groups.parallel:
        raise ValueError(
            f"The step has {groups.parallel} groups at once, but the current mesh (jax.set_mesh) "
            f"is {dict(mesh.shape)}; see split_mesh."
        )
    return axes


def mean_over_groups(
    function: Callable[[Any, Any, jax.Array | None], Any],
    groups: Groups,
    shared: Any,
    examples: Any,
) -> Any:
    """Returns the mean of a function's results over the groups of a batch.

    Sums have at least float32.  With parallel groups the current mesh (`jax.set_mesh`) must be
    that of `split_mesh`.

    Args:
      function: maps (shared, the examples of a group, the group's number) to a tree of arrays; if
        there is only one group, its number is None.
      shared: a tree of arrays that every group sees.
      examples: a tree of arrays [B, ...].
    """
    if groups.count == 1:
        return function(shared, examples, None)

    # Results are means over examples: their shapes do not depend on how many there are.
    like = jax.eval_shape(function, shared, examples, jax.ShapeDtypeStruct((), jnp.int32))

    def one_after_another(shared, examples, place):
        """Returns the sums over the groups at one place of the mesh."""
        count = groups.accumulate * groups.in_turn
        micro_batch, part = jnp.divmod(jnp.arange(count), groups.in_turn)
        numbers = (micro_batch * groups.parallel + place) * groups.in_turn + part
        if count == 1:
            return _wide(function(shared, examples, numbers[0]))

        def add(total, group):
            return jax.tree.map(jnp.add, total, _wide(function(shared, *group))), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, at_least_float32(x.dtype)), like)
        cut = jax.tree.map(lambda x: _cut(x, groups), examples)
        return lax.scan(add, zeros, (cut, numbers))[0]

    if groups.parallel == 1:
        total = one_after_another(shared, examples, 0)
    else:
        axes = _group_axes(groups)
        total = jax.shard_map(
            lambda *args: lax.psum(one_after_another(*args, lax.axis_index(axes)), axes),
            in_specs=(PartitionSpec(), PartitionSpec(axes)),
            out_specs=PartitionSpec(),
            axis_names=set(axes),
            check_vma=False,
        )(shared, examples)
    return jax.tree.map(lambda x, like: (x / groups.count).astype(like.dtype), total, like)


def _cut(x: jax.Array, groups: Groups) -> jax.Array:
    """Returns the groups in turn of x [B, ...], [groups, examples, ...]."""
    micro_batches = x.reshape(-1, groups.accumulate, *x.shape[1:]).swapaxes(0, 1)
    return micro_batches.reshape(groups.accumulate * groups.in_turn, -1, *x.shape[1:])


def _wide(tree: Any) -> Any:
    """Returns a tree with at least float32."""
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), tree)
