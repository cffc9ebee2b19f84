"""DenseNet in JAX and Flax."""

import importlib
import os
from typing import Any

from flax import linen as nn

from densenet_jax import weights
from densenet_jax.models.prepared import prepare
from densenet_jax.models.variants import create_model, list_models

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "list_models",
    "load_pretrained",
    "nnx",
    "prepare",
    "push_to_hub",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Imports `densenet_jax.nnx` when it is first used."""
    if name == "nnx":
        return importlib.import_module("densenet_jax.nnx")
    raise AttributeError(f"module 'densenet_jax' has no attribute {name!r}")


def load_pretrained(
    source: str | os.PathLike[str],
    model: str | nn.Module | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    revision: str | None = None,
    **options: Any,
) -> tuple[nn.Module, Any]:
    """Returns a model with weights, and its variables {"params": ..., "batch_stats": ...}.

    `load_pretrained("densenet121.ra_in1k")`, `load_pretrained("hf-hub:owner/name@revision")`,
    `load_pretrained("weights.pth", "densenet121", num_classes=10, in_channels=1)`.

    Args:
      source: a published name, a hub repository, a weight file, a folder with one, or the
        directory of a run, whose best checkpoint is read.
      model: the variant, or the module, that the weights belong to, if the source does not say.
      num_classes: None: as in the weights; see `weights.load`.
      in_channels: None: as in the weights; see `weights.load`.
      revision: branch, tag or commit on the hub.
      **options: see `weights.load`.

    Raises:
      WeightsError: nothing is found, or it does not fit; the message says what to do.
      ValueError: an unknown model or field.
    """
    options |= {"num_classes": num_classes, "in_channels": in_channels, "revision": revision}
    load = weights.load
    if weights.is_run(source):  # training is imported only when a run is read
        from densenet_jax.training.rundir import run_weights

        load = run_weights.load
    pretrained = load(source, model, **options)
    return pretrained.model, pretrained.variables


def push_to_hub(workdir, repo_id: str, **options) -> str:
    """Publishes a run on the Hugging Face hub; see `densenet_jax.export.push_to_hub`."""
    from densenet_jax import export

    return export.push_to_hub(workdir, repo_id, **options)
