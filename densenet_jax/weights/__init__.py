"""Weights of any framework: files, names, published checkpoints."""

from densenet_jax.weights.files import read
from densenet_jax.weights.safetensors_files import write_safetensors
from densenet_jax.weights.source import WeightsError

__all__ = ["WeightsError", "read", "write_safetensors"]
