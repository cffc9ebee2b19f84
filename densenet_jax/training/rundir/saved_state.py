"""The form of a state in a checkpoint: named arrays, so that other versions can read it.

A disabled feature is left out.  Arrays of the optimiser are named after their fields, not after
their positions in the chain, so transformations without arrays can be added to or removed from it.
"""

import collections
from typing import Any

import jax
from flax import traverse_util

# Version of the format that is written; increased whenever an older version would misread it.
#   0 (not written): the state itself as Orbax stores it, with its empty parts
#   1: named arrays
FORMAT = 1


def names(tree: Any) -> list[str]:
    """Returns the names of a tree's leaves, in order: `params/stem/conv/kernel`, ...

    Positions in tuples and lists are left out; where that makes two names equal, the second one
    ends in 1.  Formats 0 and 1 have the same names.
    """
    found: list[str] = []
    seen: collections.Counter[str] = collections.Counter()
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = (getattr(key, "name", getattr(key, "key", None)) for key in path)
        name = "/".join(str(key) for key in keys if key is not None)
        found.append(f"{name}{seen[name] or ''}")
        seen[name] += 1
    return found


def to_stored(state: Any) -> dict[str, Any]:
    """Returns a state's arrays as nested dicts, {"params": {"stem": {"conv": {"kernel": ...}}}}."""
    leaves = dict(zip(names(state), jax.tree.leaves(state), strict=True))
    return traverse_util.unflatten_dict(leaves, sep="/")


def request(stored: Any, target: Any) -> Any:
    """Returns the request to Orbax: the tree on disk, with the leaves of the target.

    Args:
      stored: Orbax's tree of metadata of the arrays on disk, in any format.
      target: a state, or a tree of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: the arrays on disk are not those of the target; the first difference is named.
    """
    wanted = dict(zip(names(target), jax.tree.leaves(target), strict=True))
    there = dict(zip(names(stored), jax.tree.leaves(stored), strict=True))
    for name in wanted.keys() - there.keys():
        raise ValueError(f"the checkpoint has no {name}")
    for name in there.keys() - wanted.keys():
        raise ValueError(f"the configured state has no {name}")
    for name, leaf in wanted.items():
        if tuple(there[name].shape) != leaf.shape:
            raise ValueError(
                f"{name} has shape {list(there[name].shape)} in the checkpoint, "
                f"not {list(leaf.shape)}"
            )
    return jax.tree.unflatten(jax.tree.structure(stored), [wanted[name] for name in names(stored)])


def from_stored(restored: Any, target: Any) -> Any:
    """Returns restored arrays in the structure of a target.

    Args:
      restored: arrays in the structure on disk.
      target: a state, or a tree of `jax.ShapeDtypeStruct`.
    """
    found = dict(zip(names(restored), jax.tree.leaves(restored), strict=True))
    structure = jax.tree.structure(target)
    return jax.tree.unflatten(structure, [found[name] for name in names(target)])
