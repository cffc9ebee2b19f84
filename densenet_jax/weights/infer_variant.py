"""Infers the variant of weights from their configuration, their name, or their tensors."""

import os
from collections import Counter
from collections.abc import Mapping

import numpy as np

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet, multiple_of_8
from densenet_jax.models.variants import VARIANTS, create_model
from densenet_jax.weights import names
from densenet_jax.weights.files import read
from densenet_jax.weights.folders import weights_in
from densenet_jax.weights.hub import HUB_PREFIXES
from densenet_jax.weights.published import PUBLISHED, model_of
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import read_config


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
    if source.startswith(HUB_PREFIXES):
        repository = source.partition(":")[2].partition("@")[0]
        return _known(model_of(repository.rpartition("/")[2]))
    if source in PUBLISHED or source in VARIANTS or not os.path.exists(source):
        return _known(model_of(source)) or named_after(source)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if config := read_config(folder or "."):
        return _known(config.model)
    path = weights_in(source) if os.path.isdir(source) else source
    return named_after(source) or variant_of(read(path))


def named_after(path: str) -> str | None:
    """Returns the variant with which the name of a file begins, as in densenet121-a639ec97.pth."""
    name = os.path.basename(path)
    return _known(model_of(name)) or max(filter(name.startswith, VARIANTS), key=len, default=None)


def variant_of(state_dict: Mapping[str, np.ndarray]) -> str | None:
    """Returns the variant whose body has exactly these names and shapes; None: there is none."""
    kernels = Counter(tuple(sorted(x.shape)) for x in state_dict.values() if x.ndim == 4)
    for name in VARIANTS:
        model = create_model(name, num_classes=1)
        if _kernels(model) - kernels:  # quick, whereas matching takes seconds
            continue
        try:
            matching = names.match(model, state_dict)
        except WeightsError:
            continue
        if matching.missing or matching.left_over:
            continue
        stem = ("params/conv0/kernel", "params/stem_conv/kernel")  # of any number of channels
        if all(
            tensor.shape == matching.targets[path].shape
            for path, tensor in matching.tensors.items()
            if path not in stem
        ):
            return name
    return None


def _kernels(model: DenseNet | RDNet) -> Counter[tuple[int, ...]]:
    """Returns how many kernels of each shape, sorted, the blocks of a model have."""
    kernels: Counter[tuple[int, ...]] = Counter()
    if isinstance(model, RDNet):
        features = model.stem_features
        for i, (depth, growth) in enumerate(
            zip(model.block_sizes, model.growth_rates, strict=True)
        ):
            features = multiple_of_8(features * model.compression) if i else features
            kernels.update((1, 7, 7, features + k * growth) for k in range(depth))
            features += depth * growth
        return kernels
    for block in model.plan():
        for width in block.widths:
            inner = block.bottleneck
            shapes = [(1, 1, width, inner), (3, 3, inner, block.growth_rate)]
            shapes = shapes if inner else [(3, 3, width, block.growth_rate)]
            kernels.update(tuple(sorted(shape)) for shape in shapes)
    return kernels


def _known(name: str) -> str | None:
    """Returns the name if it is that of a variant, else None."""
    return name if name in VARIANTS else None
