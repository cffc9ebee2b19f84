"""Pretrained weights: reading files of several frameworks, converting names, downloading."""

from densenet_jax.weights.conventions import CONVENTIONS
from densenet_jax.weights.files import locate, read
from densenet_jax.weights.folders import is_run
from densenet_jax.weights.names import MismatchError, from_state_dict, to_state_dict
from densenet_jax.weights.pretrained import Pretrained, load
from densenet_jax.weights.published import PUBLISHED, Preprocessing
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.readers.safetensors import write_safetensors

__all__ = [
    "CONVENTIONS",
    "PUBLISHED",
    "MismatchError",
    "Preprocessing",
    "Pretrained",
    "WeightsError",
    "from_state_dict",
    "is_run",
    "load",
    "locate",
    "read",
    "to_state_dict",
    "write_safetensors",
]
