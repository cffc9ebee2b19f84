"""Masks that select parameters for parts of the optimiser, by their names and by their depth."""

from collections.abc import Sequence
from typing import Any

import jax
import optax.contrib

from densenet_jax.models.parts import parts
from densenet_jax.training.errors import ConfigError


def decay_mask(params: Any) -> Any:
    """Returns a tree of bool: True for kernels (convolutions, classifier), False for the rest."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def matrices(params: Any) -> Any:
    """Returns for each parameter how Muon sees it as a matrix; None: Muon does not update it.

    Convolution kernels [h, w, in, out] are matrices of h * w * in rows, with a column for each
    filter.  Kernels with a single input channel are excluded, because a depthwise kernel is a
    matrix for each channel; and so is the classifier, as by Muon's author.

    Args:
      params: the model's parameters.

    Returns:
      a tree like `params` of `optax.contrib.MuonDimensionNumbers` or None.
    """
    filters = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda x: filters if x.ndim == 4 and x.shape[2] > 1 else None, params)


def trained_mask(params: Any, frozen: Sequence[str]) -> Any:
    """Returns a tree of labels: "frozen" for the parameters of some parts, "trained" for the rest.

    Args:
      params: the model's parameters.
      frozen: names of parts of the network: `stem`, `block1`, ..., `norm`, `head`.

    Raises:
      ConfigError: the model has no part of this name.
    """
    names = parts(params)
    known = sorted(set(jax.tree.leaves(names)))
    unknown = sorted(map(str, set(frozen) - set(known)))
    if unknown:
        raise ConfigError(
            f"config.optimizer.frozen has {', '.join(unknown)}; "
            f"the parts of this model are {', '.join(known)}."
        )
    return jax.tree.map(lambda name: "frozen" if name in frozen else "trained", names)


def depth_factors(params: Any, decay: float) -> Any:
    """Returns a tree of factors of the learning rate, which fall from the head to the stem.

    Norm and head have factor 1, the last block has `decay`, the block before it `decay ** 2`, and
    so on down to the stem.

    Args:
      params: the model's parameters.
      decay: the factor from each part to the one before it.
    """
    names = parts(params)
    blocks = max((int(n[5:]) for n in jax.tree.leaves(names) if n.startswith("block")), default=0)

    def factor(name: str) -> float:
        if name in ("norm", "head"):
            return 1.0
        depth = 0 if name == "stem" else int(name.removeprefix("block"))
        return decay ** (blocks + 1 - depth)

    return jax.tree.map(factor, names)
