"""DenseNet in JAX and Flax."""

from densenet_jax.models.variants import create_model, list_models

__all__ = ["create_model", "list_models"]
