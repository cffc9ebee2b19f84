"""Which parameters a transformation of the gradients is for, by name and by depth."""

from collections.abc import Sequence
from typing import Any

import jax
import optax.contrib

from densenet_jax.models.parts import parts
from densenet_jax.training.errors import ConfigError


def decay_mask(params: Any) -> Any:
    """Returns True for the kernels of convolutions and classifier, False for scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def matrices(params: Any) -> Any:
    """Returns which parameters are matrices for Muon, and how: kernels [h, w, in, out].

    A filter is a column, of h * w * in rows.  None: no matrix.  Kernels of a single input channel
    are left out since depthwise ones are a matrix for each channel, and the classifier as by
    Muon's author.
    """
    filters = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda x: filters if x.ndim == 4 and x.shape[2] > 1 else None, params)


def trained_mask(params: Any, frozen: Sequence[str]) -> Any:
    """Returns "frozen" for parameters of some parts of the network, "trained" for the others.

    Args:
      frozen: `stem`, `block1`, ..., `norm`, `head`.

    Raises:
      ConfigError: the model has no such part.
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
    """Returns each parameter's factor of the learning rate: decay ** (parts between it and head).

    Parts in order: stem, block1, ..., the last block; norm and head, which have the full rate.
    """
    names = parts(params)
    blocks = max((int(n[5:]) for n in jax.tree.leaves(names) if n.startswith("block")), default=0)

    def factor(name: str) -> float:
        if name in ("norm", "head"):
            return 1.0
        depth = 0 if name == "stem" else int(name.removeprefix("block"))
        return decay ** (blocks + 1 - depth)

    return jax.tree.map(factor, names)
