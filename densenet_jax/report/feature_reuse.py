"""How much each layer of a dense block uses earlier layers: figure 5 of the paper, and ablation.

A connection is (block, source, target); blocks are counted from 1.  Source 0 is the block's input,
source s is layer s.  Target t is layer t; the target after the last layer is the transition or,
after the last block, the classifier.  Target t reads the sources 0 ... t - 1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Target(NamedTuple):
    """A layer, transition or classifier that reads a block's features.

    Attributes:
      kernel: path of its kernel [..., in, out] in the parameters.
      scale: path of the scale [in] of the norm before it.
      bounds: source s has the input channels bounds[s] ... bounds[s + 1] - 1.
    """

    kernel: tuple[str, ...]
    scale: tuple[str, ...]
    bounds: tuple[int, ...]


def targets(params: Any) -> list[list[Target]]:
    """Returns the targets of each dense block, in order.

    Args:
      params: the parameters of a DenseNet, {"denseblock1": {"denselayer1": ..., ...}, ...}.

    Raises:
      ValueError: the parameters are not a DenseNet's.
    """
    blocks: list[list[Target]] = []
    while (name := f"denseblock{len(blocks) + 1}") in params:
        number, block = len(blocks) + 1, params[name]
        bounds: tuple[int, ...] = (0, block["denselayer1"]["conv1"]["kernel"].shape[-2])
        readers: list[Target] = []
        for i in range(1, len(block) + 1):
            layer = f"denselayer{i}"
            path = (name, layer)
            readers.append(Target((*path, "conv1", "kernel"), (*path, "norm1", "scale"), bounds))
            last = block[layer].get("conv2", block[layer]["conv1"])
            bounds = (*bounds, bounds[-1] + last["kernel"].shape[-1])
        after = f"transition{number}"
        if after in params:
            readers.append(Target((after, "conv", "kernel"), (after, "norm", "scale"), bounds))
        elif "classifier" in params:
            readers.append(Target(("classifier", "kernel"), ("norm_final", "scale"), bounds))
        blocks.append(readers)
    if not blocks:
        raise ValueError(
            "These are not the parameters of a DenseNet (there is no denseblock1); feature reuse "
            "is only defined for dense blocks."
        )
    return blocks


def reuse(variables: Any, *, scaled: bool = False, normalize: bool = True) -> list[np.ndarray]:
    """Returns for each block the mean absolute weight by source and target (paper, figure 5).

    Args:
      variables: {"params": ..., ...} of a DenseNet.
      scaled: multiply the weights with the scale of the norm before them.  The paper does not, so
        there a feature map counts even if the norm has scaled it to zero.
      normalize: divide each block by its largest value.

    Returns:
      float32 [sources, targets] for each block; NaN where the target does not read the source.

    Raises:
      ValueError: the variables are not a DenseNet's.
    """
    params, matrices = variables["params"], []
    for readers in targets(params):
        matrix = np.full((len(readers[-1].bounds) - 1, len(readers)), np.nan, np.float32)
        for column, reader in enumerate(readers):
            weights = np.abs(np.asarray(_get(params, reader.kernel), np.float32))
            if scaled:
                weights *= np.abs(np.asarray(_get(params, reader.scale), np.float32))[:, None]
            by_input = weights.mean(
                axis=tuple(i for i in range(weights.ndim) if i != weights.ndim - 2)
            )
            sums = np.add.reduceat(by_input, reader.bounds[:-1])
            matrix[: len(sums), column] = sums / np.diff(reader.bounds)
        greatest = np.nanmax(matrix)
        matrices.append(matrix / greatest if normalize and greatest > 0 else matrix)
    return matrices


def connections(params: Any) -> Iterator[tuple[int, int, int]]:
    """Yields every connection (block, source, target) of a DenseNet."""
    for block, readers in enumerate(targets(params), 1):
        for target, reader in enumerate(readers, 1):
            for source in range(len(reader.bounds) - 1):
                yield block, source, target


def without(variables: Any, block: int, source: int, target: int) -> Any:
    """Returns a copy of the variables without one connection: its part of the kernel is zero."""
    reader = targets(variables["params"])[block - 1][target - 1]
    part = slice(reader.bounds[source], reader.bounds[source + 1])
    # On the host, because on a device a program would be compiled for every shape of slice.
    kernel = np.array(_get(variables["params"], reader.kernel))
    kernel[..., part, :] = 0
    return {**variables, "params": _set(variables["params"], reader.kernel, kernel)}


def ablate(
    score: Callable[[Any], float],
    variables: Any,
    chosen: Sequence[tuple[int, int, int]] | None = None,
) -> list[np.ndarray]:
    """Returns for each block how much a score falls if a single connection is removed.

    Args:
      score: maps variables to a number such as the accuracy.  It should be compiled, because it is
        called once for each connection, always with the same shapes.
      variables: {"params": ..., ...} of a DenseNet.
      chosen: the connections to remove, one at a time; None: all of them.

    Returns:
      float32 [sources, targets] for each block, as from `reuse`; NaN where no connection was
      removed.
    """
    falls = [np.full_like(matrix, np.nan) for matrix in reuse(variables)]
    whole = float(score(variables))
    for block, source, target in connections(variables["params"]) if chosen is None else chosen:
        score_without = float(score(without(variables, block, source, target)))
        falls[block - 1][source, target - 1] = whole - score_without
    return falls


def _get(tree: Any, path: Sequence[str]) -> jax.Array:
    """Returns the leaf at a path of nested dicts."""
    for part in path:
        tree = tree[part]
    return tree


def _set(tree: Any, path: Sequence[str], value: np.ndarray) -> Any:
    """Returns nested dicts with another leaf at a path."""
    if not path:
        return value
    return {**tree, path[0]: _set(tree[path[0]], path[1:], value)}
