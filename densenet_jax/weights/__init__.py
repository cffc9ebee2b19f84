"""Weights of any framework: files, names, published checkpoints."""

from densenet_jax.weights.conventions import CONVENTIONS
from densenet_jax.weights.files import locate, read
from densenet_jax.weights.names import MismatchError, from_state_dict, to_state_dict
from densenet_jax.weights.pretrained import Pretrained, load, load_pretrained
from densenet_jax.weights.published import PUBLISHED, Preprocessing
from densenet_jax.weights.safetensors_files import write_safetensors
from densenet_jax.weights.source import WeightsError

__all__ = [
    "CONVENTIONS",
    "PUBLISHED",
    "MismatchError",
    "Preprocessing",
    "Pretrained",
    "WeightsError",
    "from_state_dict",
    "load",
    "load_pretrained",
    "locate",
    "read",
    "to_state_dict",
    "write_safetensors",
]
