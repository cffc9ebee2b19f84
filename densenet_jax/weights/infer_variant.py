"""Infers the network of weights from their configuration, their name, or their tensors."""

import itertools
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet
from densenet_jax.models.variants import VARIANTS, create_model, identify
from densenet_jax.weights import names, ranges, trained
from densenet_jax.weights.body import short, spelt
from densenet_jax.weights.conventions import CONVENTIONS, Convention
from densenet_jax.weights.files import read
from densenet_jax.weights.folders import weights_in
from densenet_jax.weights.hub import HUB_PREFIXES
from densenet_jax.weights.published import PUBLISHED, model_of
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import read_config

# Stems with the same tensors as another one, which is taken.
_ALIKE = {"deep": "deep_blur", "cifar": "cifar_half"}

logger = logging.getLogger(__name__)


def network_of(source: str) -> str | None:
    """Returns the variant that the weights belong to, or None if it cannot be inferred.

    Nothing is downloaded. For a file or folder, timm's `config.json` beside the weights decides;
    without one the name does, as in `densenet121-a639ec97.pth`, and else the tensors do.

    Args:
      source: a published name, a hub repository, a weight file or a folder, as for
        `pretrained.load`.

    Raises:
      WeightsError: `config.json` or the weights are damaged.
    """
    source = trained.path_of(source)
    if source.startswith(HUB_PREFIXES):
        repository = source.partition(":")[2].partition("@")[0]
        return _known(model_of(repository.rpartition("/")[2]))
    if source in PUBLISHED or source in VARIANTS or not os.path.exists(source):
        return _known(model_of(source)) or named_after(source)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if config := read_config(folder or "."):
        return _known(config.model)
    if name := named_after(source):
        return name
    found = from_tensors(read(weights_in(source) if os.path.isdir(source) else source))
    return found[0] if found and not found[1] else None


def named_after(path: str) -> str | None:
    """Returns the variant with which the name of a file begins, as in densenet121-a639ec97.pth."""
    name = os.path.basename(path)
    return _known(model_of(name)) or max(filter(name.startswith, VARIANTS), key=len, default=None)


def from_tensors(state_dict: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]] | None:
    """Returns the network to which tensors belong by their names and shapes; None: unknown.

    What has no tensors (the activation, the pooling, a blur in the stem) is as in the variants.

    Returns:
      (variant, fields that differ from it), for `create_model`.
    """
    for key, convention in CONVENTIONS.items():
        if DenseNet not in convention.modules or key == "torch_cifar":  # found as "torch"
            continue
        try:
            shapes = {
                text: state_dict[name].shape
                for text, name in spelt(convention, state_dict.keys()).items()
            }
        except WeightsError:
            continue
        fields = _fields(convention, shapes)
        if fields and (found := _checked(fields, state_dict)):
            return found
    depthwise = sum(x.ndim == 4 and x.shape[1:] == (1, 7, 7) for x in state_dict.values())
    for name in VARIANTS:
        model = create_model(name)
        alike = isinstance(model, RDNet) and depthwise == sum(model.block_sizes)
        if alike and _fits(model, state_dict):
            return name, {}
    return None


def _checked(
    fields: dict[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, Any]] | None:
    """Returns the variant and the other fields of a network, if its tensors are these."""
    try:
        ranges.check_fields(fields)
    except ValueError:
        return None
    stems = [fields["stem"], *([_ALIKE[fields["stem"]]] if fields["stem"] in _ALIKE else [])]
    networks = [create_model("densenet121", **{**fields, "stem": stem}) for stem in stems]
    name, others = min((_apart(model) for model in networks), key=lambda pair: len(pair[1]))
    model = create_model(name, **others)
    if not _fits(model, state_dict):
        return None
    if len(stems) > 1:
        logger.warning(
            "The tensors are those of %s with the stem %s, which cannot be told from %s; pass "
            "model= (--model=NAME) if it is another network.",
            *(name, model.stem, next(stem for stem in stems if stem != model.stem)),
        )
    return name, others


def _apart(model: DenseNet) -> tuple[str, dict[str, Any]]:
    """Returns the variant of a network and its other fields, without the number of classes."""
    name, fields = identify(model)
    return name, {key: value for key, value in fields.items() if key != "num_classes"}


def _fits(model: DenseNet | RDNet, state_dict: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the body of a model has exactly these names and shapes."""
    try:
        matching = names.match(model, state_dict)
    except WeightsError:
        return False
    stem = ("params/conv0/kernel", "params/stem_conv/kernel")  # of any number of channels
    return not (matching.missing or matching.left_over) and all(
        tensor.shape == matching.targets[path].shape
        for path, tensor in matching.tensors.items()
        if path not in stem
    )


def _fields(convention: Convention, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Returns the fields of a DenseNet with tensors of these names and shapes; None: it is none.

    Args:
      convention: the convention of the names.
      shapes: {name as the convention spells it: shape}.
    """
    first = short(convention, _layer(1, 1, "conv1"))
    prefix = next((text[: -len(first)] for text in shapes if text.endswith(first)), None)
    if prefix is None:
        return None

    def kernel(path: str) -> list[int]:
        """Returns [height, width, inputs, outputs] of a kernel, zeros if there is none."""
        shape = shapes.get(prefix + short(convention, path), ())
        if len(shape) != 4:
            return [0, 0, 0, 0]
        return [shape[convention.conv_axes.index(axis)] for axis in range(4)]

    blocks: list[list[list[int]]] = []
    while any(kernel(_layer(len(blocks) + 1, 1, "conv1"))):
        number, layers = len(blocks) + 1, []
        for layer in itertools.count(1):
            convolutions = [kernel(_layer(number, layer, conv)) for conv in ("conv1", "conv2")]
            if not any(convolutions[0]):
                break
            layers.append(convolutions)
        blocks.append([conv for layer in layers[:1] for conv in layer] + [[len(layers)]])
    stem = [kernel(f"params/conv{i}/kernel") for i in range(3)]
    growth = tuple((second if any(second) else first)[3] for first, second, _ in blocks)
    if not blocks or not growth[0]:
        return None
    deep = any(stem[2])
    kept, width = (
        kernel("params/transition1/conv/kernel")[3],
        kernel("params/transition1/conv/kernel")[2],
    )
    share = next((c for c in (0.5, 1.0) if int(width * c) == kept), kept / max(width, 1))
    bottleneck = blocks[0][0][3] / growth[0] if any(blocks[0][1]) else 0
    return {
        "block_sizes": tuple(count for _, _, (count,) in blocks),
        "growth_rate": growth[0] if len(set(growth)) == 1 else growth,
        "stem": convention.stem or ("imagenet" if stem[0][0] == 7 else "deep" if deep else "cifar"),
        "stem_features": (stem[2] if deep else stem[0])[3],
        "bottleneck_width": int(bottleneck) if bottleneck == int(bottleneck) else bottleneck,
        "compression": share if len(blocks) > 1 else 0.5,
    }


def _layer(block: int, layer: int, convolution: str) -> str:
    return f"params/denseblock{block}/denselayer{layer}/{convolution}/kernel"


def _known(name: str) -> str | None:
    """Returns the name if it is that of a variant, else None."""
    return name if name in VARIANTS else None
