"""State dicts of other frameworks <-> the variables of our modules, by the tables of `conventions`.

A state dict is {name: array} as a file has it; variables are {"params": ..., "batch_stats": ...}.
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
    """Tensors that do not fit a model.

    Attributes:
      missing: names that the model has and the state dict lacks.
      left_over: names that the state dict has and the model lacks.
      misshapen: name -> (shape in the state dict, shape in the model).
    """

    def __init__(self, title: str, missing: list, left_over: list, misshapen: dict):
        self.missing, self.left_over, self.misshapen = missing, left_over, misshapen
        shapes = [f"{name} {theirs}, here {ours}" for name, (theirs, ours) in misshapen.items()]
        super().__init__(
            f"The weights ({title} names) are not of this model; take the one they were trained "
            f"with. Missing in the weights: {_some(missing)}; missing in the model: "
            f"{_some(left_over)}; of another shape: {_some(shapes)}."
        )


class Matching(NamedTuple):
    """Tensors of a state dict beside the variables of a model.

    Attributes:
      targets: shape and type of each of our variables, by path.
      convention: whose names the state dict has.
      tensors: path of our variable -> tensor, in our layout, of the shape that it has in the file.
      missing: paths of our variables without a tensor.
      left_over: names of tensors without a variable.
    """

    targets: dict[str, jax.ShapeDtypeStruct]
    convention: Convention
    tensors: dict[str, np.ndarray]
    missing: list[str]
    left_over: list[str]


def shapes(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and type of every variable, by `collection/module/.../leaf`."""
    images = jax.ShapeDtypeStruct((1, 256, 256, model.in_channels), model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return traverse_util.flatten_dict(variables, sep="/")


def detect(model: nn.Module, names: Iterable[str], paths: Iterable[str]) -> Convention:
    """Returns the convention that gives most of our variables (paths) one of these names.

    Raises:
      WeightsError: no name is known.
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
            f"None of the names ({_some(names, 3)}) belongs to a {type(model).__name__} as any of "
            f"these names it: {titles}; check that the weights and the model belong together."
        )
    return best


def match(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> Matching:
    """Finds each variable's tensor in a state dict, whoever named it, and judges nothing."""
    paths = shapes(model)
    convention = detect(model, state_dict, paths)
    by_name = {spelt: name for name in state_dict if (spelt := convention.spell(name))}
    tensors, missing = {}, []
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
    """Returns the matched tensors as the model's variables, in the model's types.

    Raises:
      MismatchError: tensors are missing, left over or of another shape; all of them are named.
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
    """Returns a state dict's tensors as the variables of `model`, NumPy arrays of its types.

    The names may be PyTorch's (timm, torchvision, efficient_densenet_pytorch), Keras's, MindCV's
    or our own; which, the names themselves tell.

    Raises:
      WeightsError: no name is known; MismatchError: they are, but do not fit.
    """
    return fit(match(model, state_dict))


def to_state_dict(
    model: nn.Module, variables: Mapping[str, Any], convention: str | None = None
) -> dict[str, np.ndarray]:
    """Returns variables under another framework's names and in its layouts.

    Args:
      model: whose variables they are.
      variables: of any collections; gradients as {"params": gradients} too.
      convention: a key of `CONVENTIONS`; None: PyTorch's names, as timm and torchvision have them.

    Raises:
      ValueError: the convention does not exist, or has no names for this model.
    """
    table = of_model(model) if convention is None else CONVENTIONS.get(convention)
    if table is None or not isinstance(model, table.modules):
        known = [key for key, c in CONVENTIONS.items() if isinstance(model, c.modules)]
        raise ValueError(f"{convention!r} has no names for this model; these have: {known}.")
    state_dict = {}
    for path, value in traverse_util.flatten_dict(dict(variables), sep="/").items():
        axes = table.axes(path, np.ndim(value))
        state_dict[table.name(path)] = np.ascontiguousarray(np.asarray(value).transpose(axes))
    return state_dict


def _some(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
