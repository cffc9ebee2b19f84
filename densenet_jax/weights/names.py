"""Converts between state dicts of other frameworks and the variables of our modules.

A state dict is {name: array} with the names and layouts of a framework; `conventions` has their
tables. Variables are {"params": ..., "batch_stats": ...}. A path is `collection/module/.../leaf`.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from densenet_jax.weights.body import HEAD, Body, bodies, choose, guess, short, spelt, within
from densenet_jax.weights.conventions import CONVENTIONS, Convention, of_model
from densenet_jax.weights.heads import Head, split
from densenet_jax.weights.readers.bounded_file import WeightsError, shown

logger = logging.getLogger(__name__)


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
      prefix: the module of the file that holds the network; "": none.
      tensors: {path: tensor} of the body, transposed to our layout; shapes may still differ from
        `targets`.
      missing: paths of the variables of the body without a tensor.
      left_over: names of the tensors in the body without a variable.
      head: the classifier of the state dict.
      outside: names of tensors that belong to no layer, such as those of a loss or a metric.
    """

    targets: dict[str, jax.ShapeDtypeStruct]
    convention: Convention
    prefix: str
    tensors: dict[str, np.ndarray]
    missing: list[str]
    left_over: list[str]
    head: Head
    outside: list[str]


def shapes(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {path: shape and type} of all variables of a model."""
    images = jax.ShapeDtypeStruct((1, 256, 256, model.in_channels), model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return traverse_util.flatten_dict(variables, sep="/")


def detect(
    model: nn.Module, names: Iterable[str], paths: Iterable[str], prefix: str | None = None
) -> tuple[Body, dict[str, str]]:
    """Returns the body of a network among tensors, and {spelt name: name} of the tensors beside it.

    Args:
      model: the model.
      names: names of the tensors in a state dict.
      paths: paths of the model's variables.
      prefix: the module that holds the network, if there are several; None: the only one.

    Raises:
      WeightsError: no name belongs to a variable under any convention, or there are two networks.
    """
    paths = list(paths)
    names = within(prefix, names) if prefix else set(names)
    candidates = [c for c in CONVENTIONS.values() if isinstance(model, c.modules)]
    spellings = {c.title: spelt(c, names) for c in candidates}
    found = [body for c in candidates for body in bodies(c, paths, spellings[c.title])]
    best = choose(found)
    if best is not None and sum(body.complete for body in found) > 1:
        beside = spellings[best.convention.title]
        return detect(model, {beside[text] for text in within(best.module(), beside)}, paths)
    if best is not None and (best.complete or len(best.names) > best.size // 4):
        return best, spellings[best.convention.title]
    if other := guess(names):
        raise WeightsError(
            f"The names ({_some(names, 3)}) are those of {other}, not of a DenseNet or RDNet; "
            "this package has no such network."
        )
    if best is None:
        titles = ", ".join(c.title for c in candidates)
        raise WeightsError(
            f"None of the names ({_some(names, 3)}) belongs to a {type(model).__name__} in any of "
            f"these naming schemes: {titles}; check that the weights and the model belong together."
        )
    return best, spellings[best.convention.title]


def match(
    model: nn.Module, state_dict: Mapping[str, np.ndarray], prefix: str | None = None
) -> Matching:
    """Returns the tensor of each variable in a state dict, without an error if some do not fit.

    Args:
      model: the model.
      state_dict: {name: array}.
      prefix: the module that holds the network, if the state dict has several; None: the only one.

    Raises:
      WeightsError: the naming scheme is unknown, or there are several networks; see `detect`.
    """
    targets = shapes(model if model.num_classes else model.clone(num_classes=1))
    features = targets[f"{HEAD}kernel"].shape[0]
    if not model.num_classes:
        targets = {path: target for path, target in targets.items() if not path.startswith(HEAD)}
    state_dict = _pruned({name: np.asarray(tensor) for name, tensor in state_dict.items()})
    body, names = detect(model, state_dict, targets, prefix)
    convention = body.convention
    canonical = re.sub(r"[./]\w+$", "", convention.name(f"{HEAD}bias"))
    head, inside, outside = split(body, names, state_dict, features, canonical)
    beside = set(state_dict) - set(names.values())
    outside = (*outside, *(name for name in beside if convention.spell(name) is not None))
    tensors: dict[str, np.ndarray] = {}
    missing: list[str] = []
    for path, target in targets.items():
        if path.startswith(HEAD):
            continue
        name = body.names.get(short(convention, path))
        if name is None:
            missing.append(path)
            continue
        tensor, axes = state_dict[name], convention.axes(path, len(target.shape))
        if tensor.ndim == 5 and len(axes) == 4:
            raise WeightsError(
                f"The network of the weights is three-dimensional ({shown(name)} has the shape "
                f"{tensor.shape}), but this package has networks for images only."
            )
        if tensor.ndim == len(axes):
            tensor = tensor.transpose(np.argsort(axes))
        tensors[path] = tensor
    return Matching(
        targets, convention, body.module(), tensors, missing, sorted(inside), head, sorted(outside)
    )


def _pruned(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state dict with the products that torch.nn.utils.prune stores as two factors."""
    result = dict(state_dict)
    for name, mask in state_dict.items():
        whole = name.removesuffix("_mask")
        if whole != name and f"{whole}_orig" in state_dict and whole not in state_dict:
            del result[name]
            result[whole] = result.pop(f"{whole}_orig") * mask
    return result


def fit(matching: Matching, values: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Returns the matched tensors as variables of the model, converted to the model's types.

    Args:
      matching: the body.
      values: {path: value} of further variables, that is, of the classifier.

    Raises:
      MismatchError: tensors are missing, left over or have another shape; its attributes hold all
        of their names.
      WeightsError: tensors are integers, as in quantised networks.
    """
    paths, convention = matching.targets, matching.convention
    tensors = {**matching.tensors, **(values or {})}
    misshapen = {}
    for path, tensor in tensors.items():
        if tensor.shape == paths[path].shape:
            continue
        axes = convention.axes(path, len(paths[path].shape))
        theirs = tensor.transpose(axes).shape if tensor.ndim == len(axes) else tensor.shape
        ours = tuple(paths[path].shape[a] for a in axes)
        misshapen[convention.name(path)] = theirs, ours
    check_names(matching, misshapen)
    if integers := [convention.name(p) for p, x in tensors.items() if x.dtype.kind in "iub"]:
        raise WeightsError(
            f"The weights are quantised: {_some(integers, 3)} hold integers, whose scale is "
            "unknown; save them as float32."
        )
    if problem := unusual({convention.name(path): tensor for path, tensor in tensors.items()}):
        logger.warning("The weights have %s.", problem)
    variables = {
        path: np.ascontiguousarray(tensor).astype(paths[path].dtype)
        for path, tensor in tensors.items()
    }
    return traverse_util.unflatten_dict(variables, sep="/")


def check_names(
    matching: Matching,
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> None:
    """Raises MismatchError if tensors are missing, left over, or misshapen as given."""
    convention = matching.convention
    if matching.missing or matching.left_over or misshapen:
        names = [convention.name(path) for path in matching.missing]
        raise MismatchError(convention.title, names, matching.left_over, misshapen or {})


def check_stem(model: nn.Module, matching: Matching) -> None:
    """Raises WeightsError if the networks of a framework have another stem than a model."""
    stem = matching.convention.stem
    if stem and getattr(model, "stem", stem) != stem:
        raise WeightsError(
            f"The weights (with names of {matching.convention.title}) need a model with "
            f"stem={stem!r}, which pads its images as their framework does."
        )


def unusual(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns which tensors have NaN, infinite or, as variances, negative numbers; "": none."""
    problems: dict[str, list[str]] = {"NaN": [], "infinite numbers": [], "negative variances": []}
    for name, tensor in tensors.items():
        values = tensor.astype(np.float32) if tensor.dtype.kind == "V" else tensor
        if np.isnan(values).any():
            problems["NaN"].append(name)
        elif np.isinf(values).any():
            problems["infinite numbers"].append(name)
        elif re.search(r"var(iance)?$", name) and (values < 0).any():
            problems["negative variances"].append(name)
    return "; ".join(
        f"{what} in {len(names)} tensor{'s' * (len(names) > 1)} ({_some(names, 3)})"
        for what, names in problems.items()
        if names
    )


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
      WeightsError: the naming scheme is unknown, or there are several networks.
      MismatchError: tensors are missing, left over or have another shape.
    """
    matching = match(model, state_dict)
    check_stem(model, matching)
    head, convention = matching.head, matching.convention
    paths = [path for path in matching.targets if path.startswith(HEAD)]
    values, used = {}, set()
    if paths and head.kernel is not None:
        values, used = head_values(head), set(head.names)
    elif paths:  # take the tensors under the usual names, so that the error compares their shapes
        for path in paths:
            if (name := convention.name(path)) in state_dict:
                tensor, axes = np.asarray(state_dict[name]), convention.axes(path, 2)
                values[path] = tensor.transpose(axes) if tensor.ndim == 2 else tensor
                used.add(name)
    missing = [*matching.missing, *(path for path in paths if path not in values)]
    left_over = [*matching.left_over, *(name for name in head.names if name not in used)]
    if matching.outside:
        logger.warning("Not used: %s, which belong to no layer.", _some(matching.outside, 3))
    return fit(matching._replace(missing=missing, left_over=left_over), values)


def head_values(head: Head) -> dict[str, np.ndarray]:
    """Returns {path: value} of a classifier that is understood; a bias that it lacks is zero."""
    assert head.kernel is not None
    zeros = np.zeros(head.kernel.shape[1:], head.kernel.dtype)
    bias = zeros if head.bias is None else head.bias
    return {f"{HEAD}kernel": head.kernel, f"{HEAD}bias": bias}


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
