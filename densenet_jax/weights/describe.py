"""Describes a weight file: format, naming scheme, network, classifier, problems; compares two."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import linen as nn

from densenet_jax.models.variants import identify
from densenet_jax.weights import adapt, names, pretrained
from densenet_jax.weights.files import format_of
from densenet_jax.weights.folders import is_run, weights_in
from densenet_jax.weights.pretrained import Found, ReadRun
from densenet_jax.weights.published import IMAGENET
from densenet_jax.weights.readers.bounded_file import WeightsError


@dataclass(frozen=True)
class Description:
    """What a source of weights is.

    Attributes:
      lines: {what: answer in words}, for a table.
      problems: what a user should know, in sentences; empty: nothing.
      model: the network; None: unknown.
    """

    lines: dict[str, str]
    problems: tuple[str, ...]
    model: nn.Module | None


def describe(
    source: str,
    model: str | None = None,
    *,
    prefix: str | None = None,
    read_run: ReadRun | None = None,
) -> Description:
    """Returns a description of a source of weights; what cannot be loaded is described, too.

    Args:
      source: see `pretrained.load`.
      model: the variant; None: it is inferred.
      prefix, read_run: see `pretrained.load`.

    Raises:
      WeightsError: the source cannot be read.
    """
    found = pretrained.find(source, read_run=read_run)
    tensors = found.state_dict
    elements = sum(tensor.size for tensor in tensors.values())
    types = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    lines = {
        "format": _format(source),
        "tensors": f"{len(tensors)}, with {elements:,} numbers ({types})",
        "first names": ", ".join(sorted(tensors)[:3]),
    }
    problems: list[str] = []
    network = None
    try:
        network = pretrained.network(found, model, prefix=prefix)
        matching = names.match(network, tensors, prefix)
        network = _described(network, matching, lines, problems)
    except WeightsError as error:
        problems.append(str(error))
    assumed = found.preprocessing is IMAGENET and os.path.exists(source)
    lines["preprocessing"] = _preprocessing(found, network) + assumed * " (assumed: ImageNet's)"
    lines["licence"] = found.licence or "unknown"
    return Description(lines, tuple(problems), network)


def _format(source: str) -> str:
    """Returns the format of a file or folder; "": the source is neither."""
    path = os.path.expanduser(source.removeprefix("file://"))
    if is_run(path):
        return "the directory of a run"
    if not os.path.exists(path):
        return "published weights"
    return format_of(weights_in(path) if os.path.isdir(path) else path)


def _described(
    model: nn.Module, matching: names.Matching, lines: dict[str, str], problems: list[str]
) -> nn.Module | None:
    """Adds what the names and shapes of tensors say, and returns the network that they make."""
    classes, channels = adapt.sizes(matching)
    head = matching.head
    lines["names"] = matching.convention.title
    lines["module"] = matching.prefix
    name, fields = identify(model)
    own = {key: value for key, value in fields.items() if key not in ("num_classes", "in_channels")}
    lines["network"] = f"{name} with {own}" if own else name
    lines["channels"] = str(channels or "unknown")
    lines["classifier"] = (
        "none" if classes == 0 else head.problem or f"{head.module[:-1]}, {classes} classes"
    )
    if head.problem:
        problems.append(str(head.refuse(0)))
    if matching.outside:
        some = ", ".join(matching.outside[:3])
        more = f" and {len(matching.outside) - 3} more" if len(matching.outside) > 3 else ""
        problems.append(f"Tensors that belong to no layer are not used: {some}{more}.")
    fitting = model.clone(num_classes=classes or 0, in_channels=channels or model.in_channels)
    adapt.merge(fitting, matching, 0)
    tensors = {matching.convention.name(path): x for path, x in matching.tensors.items()}
    if problem := names.unusual(tensors):
        problems.append(f"The weights have {problem}.")
    return fitting


def _preprocessing(found: Found, model: nn.Module | None) -> str:
    given = found.preprocessing.for_channels(model.in_channels if model is not None else 3)
    mean, std = (", ".join(f"{x:.4g}" for x in numbers) for numbers in (given.mean, given.std))
    size = given.image_size
    return (
        f"{size}x{size}, {given.fit} {given.crop_fraction:g}, {given.interpolation}; "
        f"mean {mean}; std {std}"
    )


def differences(first: Any, second: Any) -> tuple[list[str], list[str], float]:
    """Compares two networks' variables.

    Args:
      first, second: {path: array}.

    Returns:
      (paths that only one has or whose shapes differ, paths whose numbers differ, the greatest
      absolute difference of numbers).
    """
    apart = sorted(
        path
        for path in first.keys() | second.keys()
        if path not in first or path not in second or first[path].shape != second[path].shape
    )
    unequal, greatest = [], 0.0
    for path in sorted(first.keys() - set(apart)):
        one, other = np.asarray(first[path], np.float64), np.asarray(second[path], np.float64)
        if not np.array_equal(one, other, equal_nan=True):
            unequal.append(path)
            greatest = max(greatest, float(np.nanmax(np.abs(one - other), initial=0.0)))
    return apart, unequal, greatest
