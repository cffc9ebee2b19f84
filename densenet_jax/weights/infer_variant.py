"""Infers the variant of weights from their name or configuration, without reading the weights."""

import os

from densenet_jax.models.variants import VARIANTS
from densenet_jax.weights.hub import HUB_PREFIXES
from densenet_jax.weights.published import model_of
from densenet_jax.weights.timm_config import read_config


def network_of(source: str) -> str | None:
    """Returns the variant that the weights belong to, or None if it cannot be inferred.

    Nothing is downloaded. For a file or folder, timm's `config.json` beside the weights decides;
    otherwise the name does, as in `densenet121-a639ec97.pth`.

    Args:
      source: a published name, a hub repository, a weight file or a folder, as for
        `pretrained.load`.

    Raises:
      WeightsError: `config.json` is damaged.
    """
    if source.startswith(HUB_PREFIXES):
        repository = source.partition(":")[2].partition("@")[0]
        return _known(model_of(repository.rpartition("/")[2]))
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if os.path.exists(source) and (config := read_config(folder or ".")):
        return _known(config.model)
    name = os.path.basename(source)
    return _known(model_of(name)) or max(filter(name.startswith, VARIANTS), key=len, default=None)


def _known(name: str) -> str | None:
    """Returns the name if it is that of a variant, else None."""
    return name if name in VARIANTS else None
