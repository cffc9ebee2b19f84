"""Converts between state dicts of other frameworks and the variables of our modules.

A state dict is {name: array} with the names and layouts of a framework; `conventions` has their
tables. Variables are {"params": ..., "batch_stats": ...}. A path is `collection/module/.../leaf`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from densenet_jax.weights.conventions import CONVENTIONS, Convention, of_model
from densenet_jax.weights.readers.bounded_file import WeightsError


class MismatchError(WeightsError):
    """The tensors of a state dict do not fit a model.

    Attributes:
      missing: names that the model has and the state dict lacks.
      left_over: names that the state dict has and the model lacks.
      misshapen: {name: (shape in the state dict, shape in the model)}.
    """

    def __init__(
        self,
        title: str,
        missing: list[str],
        left_over: list[str],
        misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing, self.left_over, self.misshapen = missing, left_over, misshapen
        shapes = [
            f"{name} {theirs}, in the model {ours}" for name, (theirs, ours) in misshapen.items()
        ]
        super().__init__(
            f"The weights (with names of {title}) do not fit this model; use the model that they "
            f"were trained with. Missing in the weights: {_some(missing)}; missing in the model: "
            f"{_some(left_over)}; with another shape: {_some(shapes)}."
        )


class Matching(NamedTuple):
    """Tensors of a state dict, matched by name with the variables of a model.

    Attributes:
      targets: {path: shape and type} of all variables of the model.
      convention: the convention of the names in the state dict.
      tensors: {path: tensor}, transposed to our layout; shapes may still differ from `targets`.
      missing: paths of the variables without a tensor.
      left_over: names of the tensors without a variable.
    """

    targets: dict[str, jax.ShapeDtypeStruct]
    convention: Convention
    tensors: dict[str, np.ndarray]
    missing: list[str]
    left_over: list[str]


def shapes(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {path: shape and type} of all variables of a model."""
    images = jax.ShapeDtypeStruct((1, 256, 256, model.in_channels), model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return traverse_util.flatten_dict(variables, sep="/")


def detect(model: nn.Module, names: Iterable[str], paths: Iterable[str]) -> Convention:
    """Returns the convention under which most names belong to a variable of the model.

    Args:
      model: the model.
      names: names of the tensors in a state dict.
      paths: paths of the model's variables.

    Raises:
      WeightsError: no name belongs to a variable under any convention.
    """
    names, paths = list(names), list(paths)

    def known(convention: Convention) -> int:
        ours = {convention.name(path) for path in paths}
        return sum(convention.spell(name) in ours for name in names)

    candidates = [c for c in CONVENTIONS.values() if isinstance(model, c.modules)]
    best = max(candidates, key=known)
    if not known(best):
        titles = ", ".join(c.title for c in candidates)
        raise WeightsError(
            f"None of the names ({_some(names, 3)}) belongs to a {type(model).__name__} in any of "
            f"these naming schemes: {titles}; check that the weights and the model belong together."
        )
    return best


def match(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> Matching:
    """Returns the tensor of each variable in a state dict, without an error if some do not fit.

    Raises:
      WeightsError: the naming scheme is unknown, see `detect`.
    """
    paths = shapes(model)
    convention = detect(model, state_dict, paths)
    by_name = {spelt: name for name in state_dict if (spelt := convention.spell(name))}
    tensors: dict[str, np.ndarray] = {}
    missing: list[str] = []
    for path, target in paths.items():
        name = by_name.pop(convention.name(path), None)
        if name is None:
            missing.append(path)
            continue
        tensor, axes = np.asarray(state_dict[name]), convention.axes(path, len(target.shape))
        if tensor.ndim == len(axes):
            tensor = tensor.transpose(np.argsort(axes))
        tensors[path] = tensor
    return Matching(paths, convention, tensors, missing, sorted(by_name.values()))


def fit(matching: Matching) -> dict[str, Any]:
    """Returns the matched tensors as variables of the model, converted to the model's types.

    Raises:
      MismatchError: tensors are missing, left over or have another shape; its attributes hold all
        of their names.
    """
    paths, convention, tensors, missing, left_over = matching
    misshapen = {}
    for path, tensor in tensors.items():
        if tensor.shape == paths[path].shape:
            continue
        axes = convention.axes(path, len(paths[path].shape))
        theirs = tensor.transpose(axes).shape if tensor.ndim == len(axes) else tensor.shape
        ours = tuple(paths[path].shape[a] for a in axes)
        misshapen[convention.name(path)] = theirs, ours
    if missing or left_over or misshapen:
        names = [convention.name(path) for path in missing]
        raise MismatchError(convention.title, names, left_over, misshapen)
    variables = {
        path: np.ascontiguousarray(tensor).astype(paths[path].dtype)
        for path, tensor in tensors.items()
    }
    return traverse_util.unflatten_dict(variables, sep="/")


def from_state_dict(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the tensors of a state dict as variables of a model.

    The naming scheme is detected automatically: PyTorch's (timm, torchvision,
    efficient_densenet_pytorch), Keras's, MindCV's or our own.

    Args:
      model: the model.
      state_dict: {name: array}, with the names and layouts of one framework.

    Returns:
      {"params": ..., "batch_stats": ...} with NumPy arrays of the model's types.

    Raises:
      WeightsError: the naming scheme is unknown.
      MismatchError: tensors are missing, left over or have another shape.
    """
    return fit(match(model, state_dict))


def to_state_dict(
    model: nn.Module, variables: Mapping[str, Any], convention: str | None = None
) -> dict[str, np.ndarray]:
    """Returns variables as a state dict of another framework.

    Args:
      model: the model that the variables belong to.
      variables: {"params": ..., "batch_stats": ...}, or only some of the collections; for example
        {"params": gradients}.
      convention: a key of `CONVENTIONS`; None: PyTorch's names, as in timm and torchvision.

    Returns:
      {name: array} with the names and layouts of the framework.

    Raises:
      ValueError: the convention does not exist, or has no names for this model.
    """
    table = of_model(model) if convention is None else CONVENTIONS.get(convention)
    if table is None or not isinstance(model, table.modules):
        known = [key for key, c in CONVENTIONS.items() if isinstance(model, c.modules)]
        raise ValueError(
            f"{convention!r} has no names for this model; use one of {', '.join(known)}."
        )
    state_dict = {}
    for path, value in traverse_util.flatten_dict(dict(variables), sep="/").items():
        axes = table.axes(path, np.ndim(value))
        state_dict[table.name(path)] = np.ascontiguousarray(np.asarray(value).transpose(axes))
    return state_dict


def _some(names: Iterable[str], most: int = 8) -> str:
    """Returns up to `most` of the names in order and the number of the others, for messages."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
