"""A state as a checkpoint stores it: named arrays and nothing else, so that versions can differ.

A feature that is off leaves no trace, and an array of the optimiser is named by its fields, not by
its place in the chain, so a transformation that keeps nothing may join the chain or leave it.
"""

import collections
from typing import Any

import jax
from flax import traverse_util

# Number of what is written; one more whenever an older version would misread it.
#   0 (not written): the state itself as Orbax stores it, with its empty parts
#   1: named arrays
FORMAT = 1


def names(tree: Any) -> list[str]:
    """Returns the names of a tree's leaves, in order: `params/stem/conv/kernel`.

    Places in tuples and lists are left out; where that makes two names equal, the second ends in 1.
    Formats 0 and 1 have the same names.
    """
    found, seen = [], collections.Counter()
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = (getattr(key, "name", getattr(key, "key", None)) for key in path)
        name = "/".join(str(key) for key in keys if key is not None)
        found.append(f"{name}{seen[name] or ''}")
        seen[name] += 1
    return found


def to_stored(state: Any) -> dict[str, Any]:
    """Returns nested dicts of a state's arrays."""
    leaves = dict(zip(names(state), jax.tree.leaves(state), strict=True))
    return traverse_util.unflatten_dict(leaves, sep="/")


def request(stored: Any, target: Any) -> Any:
    """Returns what to ask Orbax for: the tree on disk with the target's leaves.

    Args:
      stored: what Orbax says of the arrays on disk, of any format.
      target: a state, or its `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: the arrays are not those of the target; the first that differs is named.
    """
    wanted = dict(zip(names(target), jax.tree.leaves(target), strict=True))
    there = dict(zip(names(stored), jax.tree.leaves(stored), strict=True))
    for name in wanted.keys() - there.keys():
        raise ValueError(f"it has no {name}")
    for name in there.keys() - wanted.keys():
        raise ValueError(f"nothing here is called {name}")
    for name, leaf in wanted.items():
        if tuple(there[name].shape) != leaf.shape:
            raise ValueError(
                f"{name} is {list(there[name].shape)} there and {list(leaf.shape)} here"
            )
    return jax.tree.unflatten(jax.tree.structure(stored), [wanted[name] for name in names(stored)])


def from_stored(restored: Any, target: Any) -> Any:
    """Returns restored arrays in the target's structure."""
    found = dict(zip(names(restored), jax.tree.leaves(restored), strict=True))
    structure = jax.tree.structure(target)
    return jax.tree.unflatten(structure, [found[name] for name in names(target)])
