"""Finds the classifier among the tensors outside of the body, whatever it is called.

A head is one linear layer, or a 1x1 convolution, from the features of the body to the classes:
`classifier`, `fc`, `classifier.1`, `class_layers.out`, `dense_1`. Anything else beside the body
that computes (several layers, a normalisation, a part of a layer) is refused; it is never silently
replaced or misread.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from densenet_jax.weights.body import Body
from densenet_jax.weights.conventions import Convention
from densenet_jax.weights.readers.bounded_file import WeightsError

_KERNELS = ("weight", "kernel")
_NORMS = ("running_mean", "running_var", "moving_mean", "moving_variance", "gamma", "beta")
_NUMBERED = re.compile(r"^\d+$")  # variables whose names Keras does not write


class Head(NamedTuple):
    """The classifier of a state dict.

    Attributes:
      module: name of its layer; "": there is none.
      kernel: [features, classes]; None: there is no classifier, or it is not understood.
      bias: [classes]; None: the layer has none.
      names: names of its tensors.
      classes: the numbers of classes that it may stand for.
      problem: why it is not understood, in words; "": it is.
    """

    module: str = ""
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None
    names: tuple[str, ...] = ()
    classes: frozenset[int] = frozenset()
    problem: str = ""

    def refuse(self, num_classes: int) -> WeightsError:
        """Returns the error for a head that is not understood where its own values are needed."""
        other = "0 for the features alone, or another number for a new classifier"
        return WeightsError(
            f"The classifier of the weights cannot be used: {self.problem}. Pass num_classes="
            f"{other}{f' (not {num_classes})' if num_classes else ''}."
        )


class Rest(NamedTuple):
    """The tensors that are not part of the body.

    Attributes:
      head: the classifier.
      inside: names of tensors inside the body that the model lacks.
      outside: names of the other tensors, which belong to no layer of the network.
    """

    head: Head
    inside: tuple[str, ...]
    outside: tuple[str, ...]


def split(
    body: Body,
    names: Mapping[str, str],
    state_dict: Mapping[str, np.ndarray],
    features: int,
    canonical: str,
) -> Rest:
    """Sorts the tensors that are not part of the body.

    Args:
      body: the body.
      names: {spelt name: name of a tensor}, see `body.spelt`.
      state_dict: {name: tensor}.
      features: width of the body, which the classifier reads.
      canonical: the convention's own name for the classifier's layer.
    """
    used = set(body.names.values())
    layers: dict[str, dict[str, str]] = {}
    for text, name in names.items():
        if name not in used:
            end = max(text.rfind("."), text.rfind("/")) + 1
            layers.setdefault(text[:end], {})[text[end:]] = name
    root = body.convention.root
    own = body.prefix.removesuffix(root) + canonical
    strict = bool(root) and body.prefix.endswith(root)
    parts = {re.split(r"[._/]", text)[0] for text in body.names}
    inside: list[str] = []
    outside: list[str] = []
    others: dict[str, dict[str, str]] = {}
    for module, leaves in layers.items():
        computes = module[:-1] == own or _computes(leaves, state_dict)
        # Without a module of its own, the body stands beside other layers.
        first = re.split(r"[._/]", module.removeprefix(body.prefix))[0]
        beside = not strict and computes and first not in parts
        if module[:-1] != own and module.startswith(body.prefix) and not beside:
            inside += leaves.values()
        elif computes:
            others[module] = leaves
        else:
            outside += leaves.values()
    return Rest(_head(others, state_dict, features, body), tuple(inside), tuple(outside))


def _computes(leaves: Mapping[str, str], state_dict: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the tensors of a module are those of a layer, not of a loss or a metric."""
    matrix = any(state_dict[name].ndim > 1 for leaf, name in leaves.items() if leaf in _KERNELS)
    numbered = any(
        state_dict[name].ndim > 1 for leaf, name in leaves.items() if _NUMBERED.match(leaf)
    )
    return matrix or numbered or "bias" in leaves or any(leaf in _NORMS for leaf in leaves)


def _width(tensor: np.ndarray, convention: Convention) -> int:
    """Returns the number of outputs of the layer that a tensor belongs to; 0: it is a scalar."""
    axes = {2: convention.dense_axes, 4: convention.conv_axes}.get(tensor.ndim)
    return tensor.shape[axes.index(tensor.ndim - 1) if axes else 0] if tensor.ndim else 0


def _head(
    layers: Mapping[str, Mapping[str, str]],
    state_dict: Mapping[str, np.ndarray],
    features: int,
    body: Body,
) -> Head:
    """Returns the classifier that the layers outside of the body are."""
    if not layers:
        return Head()
    names = tuple(name for leaves in layers.values() for name in leaves.values())
    # Which of several layers is the last cannot be told, so each width may be that of the classes.
    classes = frozenset(_width(state_dict[name], body.convention) for name in names)
    some = ", ".join(sorted(names)[:3]) + ("" if len(names) < 4 else f" and {len(names) - 3} more")
    if len(layers) > 1:
        problem = f"{len(layers)} layers follow the body or stand beside it ({some})"
        return Head("", None, None, names, classes, problem)
    ((module, leaves),) = layers.items()
    # Keras numbers the variables of a layer whose class it does not write: kernel, bias.
    leaves = {{"0": "kernel", "1": "bias"}.get(leaf, leaf): name for leaf, name in leaves.items()}
    kernels = [state_dict[name] for leaf, name in leaves.items() if leaf in _KERNELS]
    known = {*_KERNELS, "bias"}
    if len(kernels) != 1 or not leaves.keys() <= known:
        problem = f"{some} are not the weight and bias of one linear layer"
        return Head("", None, None, names, classes, problem)
    kernel = kernels[0]
    axes = body.convention.dense_axes
    if kernel.ndim == 4:  # as a 1x1 convolution
        kernel = kernel.transpose(np.argsort(body.convention.conv_axes))
        if kernel.shape[:2] == (1, 1):
            kernel, axes = kernel[0, 0], (0, 1)
    kernel = kernel.transpose(axes) if kernel.ndim == 2 else kernel
    bias = state_dict[leaves["bias"]] if "bias" in leaves else None
    wrong = kernel.ndim != 2 or kernel.shape[0] != features
    if wrong or (bias is not None and bias.shape != kernel.shape[1:]):
        shapes = ", ".join(f"{name} {state_dict[name].shape}" for name in names)
        problem = f"it has another shape ({shapes}) than a linear layer of {features} features"
        return Head("", None, None, names, classes, problem)
    return Head(module, kernel, bias, names, frozenset([kernel.shape[1]]))
