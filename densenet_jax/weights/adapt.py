"""Adapts weights to a model with another number of classes or of input channels."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from densenet_jax.weights.body import HEAD, TOP
from densenet_jax.weights.names import Matching, fit, head_values

STEM = re.compile(r"^params/(conv0|stem_conv)/kernel$")


@dataclass(frozen=True)
class Report:
    """How the variables of a model were filled from a file.

    Attributes:
      loaded: number of variables with values from the file.
      fresh: paths of the variables that were newly initialised.
      adapted: path of the stem's kernel if it was adapted to other input channels, else None.
      dropped: names of the tensors in the file that were not used.
      prefix: the module of the file that holds the network.
      head: name of the classifier in the file, if it has another one than usual; else "".
      zero: paths of the variables that the file lacks because its layer has no bias.
    """

    loaded: int
    fresh: tuple[str, ...] = ()
    adapted: str | None = None
    dropped: tuple[str, ...] = ()
    prefix: str = ""
    head: str = ""
    zero: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.loaded} variables loaded"]
        if self.prefix and self.prefix != TOP:
            parts[0] += f" from {self.prefix}"
        if self.head:
            parts.append(f"classifier: {self.head}")
        if self.zero:
            parts.append(f"zero: {', '.join(self.zero)}")
        if self.adapted:
            parts.append(f"{self.adapted} adapted to the input channels")
        if self.fresh:
            parts.append(f"fresh: {', '.join(self.fresh)}")
        if self.dropped:
            more = f" and {len(self.dropped) - 8} more" if len(self.dropped) > 8 else ""
            parts.append(f"not used: {', '.join(self.dropped[:8])}{more}")
        return "; ".join(parts)


def sizes(matching: Matching) -> tuple[int | None, int | None]:
    """Returns the number of classes and of input channels of the network in a file.

    Zero classes mean that the file has no classifier, None that it is not understood; None channels
    mean that they are unknown.
    """
    head = matching.head
    classes = 0 if not head.names else None if head.kernel is None else head.kernel.shape[1]
    kernels = [k for path, k in matching.tensors.items() if STEM.match(path) and k.ndim == 4]
    return classes, kernels[0].shape[2] if kernels else None


def merge(model: nn.Module, matching: Matching, seed: int) -> tuple[Any, Report]:
    """Returns the variables of a model, filled from a state dict, and a report.

    The classifier is that of the file if it has as many classes as the model. It is initialised
    from `seed` only if the model has another number of classes, and dropped if the model has none.
    The stem's kernel is adapted to the input channels of the model. Every other difference is an
    error.

    Args:
      model: the model.
      matching: the state dict, matched with a model that may differ in classes and input channels.
      seed: for the initialisation of a classifier.

    Returns:
      ({"params": ..., "batch_stats": ...}, report).

    Raises:
      WeightsError: the classifier of the file is needed but not understood, or tensors do not fit.
    """
    head, classes = matching.head, model.num_classes
    paths = [f"{HEAD}{leaf}" for leaf in ("bias", "kernel")] if classes else []
    values: dict[str, np.ndarray] = {}
    fresh: list[str] = []
    dropped = list(matching.outside)
    if head.problem and classes in head.classes:
        raise head.refuse(classes)
    if classes and head.kernel is not None and head.kernel.shape[1] == classes:
        values = head_values(head)
    else:
        fresh, dropped = paths, [*dropped, *sorted(head.names)]
        values = initialise(model, paths, seed) if paths else {}
    tensors, adapted = dict(matching.tensors), None
    for path in filter(STEM.match, tensors):
        shape = tensors[path].shape
        if len(shape) == 4 and shape[2] != model.in_channels:
            tensors[path], adapted = adapt_channels(tensors[path], model.in_channels), path
    targets = {p: t for p, t in matching.targets.items() if not p.startswith(HEAD)}
    targets |= {p: jax.ShapeDtypeStruct(x.shape, model.param_dtype) for p, x in values.items()}
    for path in filter(STEM.match, tensors):
        shape = targets[path].shape
        wanted = (*shape[:2], model.in_channels, *shape[3:])
        targets[path] = jax.ShapeDtypeStruct(wanted, targets[path].dtype)
    variables = fit(matching._replace(tensors=tensors, targets=targets), values)
    used = bool(values) and not fresh
    zero = (f"{HEAD}bias",) if used and head.bias is None else ()
    usual = matching.convention.name(f"{HEAD}bias").rpartition("bias")[0]
    named = head.module[:-1] if used and not head.module.endswith(usual) else ""
    loaded = len(tensors) + len(values) - len(fresh) - len(zero)
    return variables, Report(
        loaded, tuple(fresh), adapted, tuple(dropped), matching.prefix, named, zero
    )


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
