"""Adapts weights to a model with another number of classes or of input channels."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from densenet_jax.weights.names import Matching, fit, match

HEAD = "params/classifier/"
STEM = re.compile(r"^params/(conv0|stem_conv)/kernel$")


@dataclass(frozen=True)
class Report:
    """How the variables of a model were filled from a file.

    Attributes:
      loaded: number of variables with values from the file.
      fresh: paths of the variables that were newly initialised.
      adapted: path of the stem's kernel if it was adapted to other input channels, else None.
      dropped: names of the tensors in the file that were not used.
    """

    loaded: int
    fresh: tuple[str, ...] = ()
    adapted: str | None = None
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.loaded} variables loaded"]
        if self.adapted:
            parts.append(f"{self.adapted} adapted to the input channels")
        if self.fresh:
            parts.append(f"fresh: {', '.join(self.fresh)}")
        if self.dropped:
            parts.append(f"not used: {', '.join(self.dropped)}")
        return "; ".join(parts)


def sizes(matching: Matching) -> tuple[int, int | None]:
    """Returns the number of classes and of input channels of the network in a file.

    Zero classes mean that the file has no classifier; None channels mean that they are unknown.
    """
    bias = matching.tensors.get(f"{HEAD}bias")
    kernels = [k for path, k in matching.tensors.items() if STEM.match(path) and k.ndim == 4]
    return 0 if bias is None else bias.size, kernels[0].shape[2] if kernels else None


def merge(model: nn.Module, state_dict: dict[str, np.ndarray], seed: int) -> tuple[Any, Report]:
    """Returns the variables of a model, filled from a state dict, and a report.

    If the number of classes differs, the classifier is initialised from `seed`; if the model has no
    classifier, that of the file is dropped. The stem's kernel is adapted to the input channels of
    the model. Every other difference is an error.

    Args:
      model: the model.
      state_dict: {name: array}, with the names and layouts of any known framework.
      seed: for the initialisation of a classifier.

    Returns:
      ({"params": ..., "batch_stats": ...}, report).

    Raises:
      WeightsError: see `names.from_state_dict`.
    """
    matching = match(model, state_dict)
    tensors, missing = dict(matching.tensors), list(matching.missing)
    left_over, adapted = list(matching.left_over), None
    heads = [path for path in matching.targets if path.startswith(HEAD)]
    fresh: list[str] = []
    if any(
        path in missing or tensors[path].shape != matching.targets[path].shape for path in heads
    ):
        fresh = heads
        tensors.update(initialise(model, heads, seed))
        missing = [path for path in missing if path not in heads]
    names = {matching.convention.name(HEAD + leaf) for leaf in ("kernel", "bias")}
    dropped = [n for n in left_over if not heads and matching.convention.spell(n) in names]
    for path in filter(STEM.match, tensors):
        shape = tensors[path].shape
        if len(shape) == 4 and shape[2] != model.in_channels:
            tensors[path], adapted = adapt_channels(tensors[path], model.in_channels), path
    left_over = [name for name in left_over if name not in dropped]
    variables = fit(matching._replace(tensors=tensors, missing=missing, left_over=left_over))
    return variables, Report(len(tensors) - len(fresh), tuple(fresh), adapted, tuple(dropped))


def initialise(model: nn.Module, paths: list[str], seed: int) -> dict[str, np.ndarray]:
    """Returns {path: initial value} of the variables at `paths`, without computing the others."""
    images = np.zeros((1, 64, 64, model.in_channels), np.float32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        variables = traverse_util.flatten_dict(model.init(key, images), sep="/")
        return {path: variables[path] for path in paths}

    return {path: np.asarray(x) for path, x in jax.jit(init)(jax.random.key(seed)).items()}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel [H, W, in, out] adapted to another number of input channels, as timm does.

    For one channel, the kernel is summed over its input channels. A grey image then gives the same
    activations as before, when it was repeated in all channels. For other numbers, the input
    channels are repeated in order and scaled by `in / channels`, which keeps the size of
    activations.
    """
    old, dtype = kernel.shape[2], kernel.dtype
    kernel = kernel.astype(np.promote_types(dtype, np.float32))
    if channels == 1:
        return kernel.sum(2, keepdims=True).astype(dtype)
    repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))[:, :, :channels]
    return (repeated * (old / channels)).astype(dtype)
