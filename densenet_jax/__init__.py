"""DenseNet in JAX and Flax."""

from densenet_jax import weights
from densenet_jax.models.variants import create_model, list_models
from densenet_jax.weights import pretrained
from densenet_jax.weights.pretrained import load_pretrained

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_pretrained", "push_to_hub", "weights"]


def _read_workdir(folder: str):
    """Reads the best checkpoint of a run; training is imported only when a run is read."""
    from densenet_jax.training.rundir import run_weights

    return run_weights.read(folder, run_weights.read_config(folder))[:3]


def push_to_hub(workdir, repo_id: str, **options) -> str:
    """Publishes a run on the Hugging Face hub; see `densenet_jax.export.push_to_hub`."""
    from densenet_jax import export

    return export.push_to_hub(workdir, repo_id, **options)


pretrained.workdir_reader = _read_workdir
