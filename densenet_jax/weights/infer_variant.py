"""Which variant weights belong to, as far as their name tells: nothing is downloaded or read."""

import os

from densenet_jax.models.variants import VARIANTS
from densenet_jax.weights.hub import HUB_PREFIXES
from densenet_jax.weights.published import model_of
from densenet_jax.weights.timm_config import read_config


def network_of(source: str) -> str | None:
    """Returns the variant that a source of weights says it is of; None: it does not say.

    Args:
      source: as of `pretrained.load`: a published name, a hub repository, a weight file (named
        after the variant, densenet121-a639ec97.pth, or beside timm's config.json), a folder.
    """
    if source.startswith(HUB_PREFIXES):
        repository = source.partition(":")[2].partition("@")[0]
        return _known(model_of(repository.rpartition("/")[2]))
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if os.path.exists(source) and (config := read_config(folder or ".")):
        return _known(config[0])
    name = os.path.basename(source)
    return _known(model_of(name)) or max(filter(name.startswith, VARIANTS), key=len, default=None)


def _known(name: str) -> str | None:
    return name if name in VARIANTS else None
