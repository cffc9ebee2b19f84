"""DenseNet in JAX and Flax."""

from densenet_jax import weights
from densenet_jax.models.variants import create_model, list_models
from densenet_jax.weights.pretrained import load_pretrained

__all__ = ["create_model", "list_models", "load_pretrained", "weights"]
