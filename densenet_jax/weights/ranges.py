"""The ranges of the values in configurations beside weights, which are not trusted.

A value is checked before a model is built from it, because a number from a file could otherwise
take any memory and time. The fields are also compared with the tensors: no network has more layers
or wider ones than the file that holds its weights.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from densenet_jax.models.activation import ACTIVATIONS
from densenet_jax.models.block.implementations import IMPLEMENTATIONS
from densenet_jax.models.pooling import GLOBAL_POOLS
from densenet_jax.models.stem import STEMS
from densenet_jax.weights.readers.bounded_file import shown

MAX_BLOCKS = 64
MAX_LAYERS = 512  # of all blocks; DenseNet-264 has 130


class Numbers(NamedTuple):
    """The range of a field.

    Attributes:
      low, high: the smallest and the largest value.
      whole: whether only integers are allowed.
      counts: allowed lengths of a list; 0 stands for a number alone.
    """

    low: float
    high: float
    whole: bool = True
    counts: range = range(1)


_ONE_OR_MORE = range(MAX_BLOCKS + 1)
_LIST = range(1, MAX_BLOCKS + 1)
_TINY = 1e-12  # above zero

# Field of a model -> its range.
NUMBERS = {
    "num_classes": Numbers(0, 1 << 20),
    "in_channels": Numbers(1, 1024),
    "block_sizes": Numbers(1, 256, counts=_LIST),
    "growth_rate": Numbers(1, 4096, counts=_ONE_OR_MORE),
    "growth_rates": Numbers(1, 4096, counts=_LIST),
    "stem_features": Numbers(1, 1 << 14),
    "bottleneck_width": Numbers(0, 64, whole=False),
    "compression": Numbers(0.01, 1, whole=False),
    "dropout_rate": Numbers(0, 0.999, whole=False),
    "drop_path_rate": Numbers(0, 0.999, whole=False),
    "norm_epsilon": Numbers(0, 1, whole=False),
    "norm_momentum": Numbers(0, 1, whole=False),
    "layer_scale": Numbers(0, 1e3, whole=False),
    "halving": Numbers(0, MAX_BLOCKS, counts=_ONE_OR_MORE),
    "gated_from": Numbers(0, MAX_BLOCKS),
    "freeze_statistics": Numbers(0, 1),
}
# Field of a model -> its allowed words.
WORDS = {
    "stem": tuple(STEMS),
    "activation": tuple(ACTIVATIONS),
    "global_pool": tuple(GLOBAL_POOLS),
    "implementation": tuple(IMPLEMENTATIONS),
}
# Field of the preprocessing -> its range.
PREPROCESSING = {
    "image_size": Numbers(1, 4096),
    "crop_fraction": Numbers(0.05, 1, whole=False),
    "mean": Numbers(-1e3, 1e3, whole=False, counts=range(1, 1025)),
    "std": Numbers(_TINY, 1e3, whole=False, counts=range(1, 1025)),
}


def check_numbers(key: str, value: Any, allowed: Numbers) -> None:
    """Raises ValueError, with the range, if a value of a configuration is not allowed."""
    many = isinstance(value, list | tuple)
    if (len(value) if many else 0) not in allowed.counts:
        first, last = allowed.counts[0], allowed.counts[-1]
        if many:
            lengths = f"a list of {max(first, 1)} to {last} numbers" if last else "one number"
            raise ValueError(f"{key} has {len(value)} numbers, but it must be {lengths}")
        raise ValueError(f"{key} is {_text(value)}, but it must be a list of numbers")
    for number in value if many else [value]:
        flag = isinstance(number, bool) and (allowed.low, allowed.high) != (0, 1)
        if flag or not isinstance(number, int | float):
            raise ValueError(f"{key} is {_text(number)}, but it must be a number")
        if allowed.whole and not isinstance(number, int):
            raise ValueError(f"{key} is {_text(number)}, but it must be a whole number")
        if not allowed.low <= number <= allowed.high:  # NaN is in no range
            low = "above 0" if allowed.low == _TINY else f"at least {allowed.low:g}"
            raise ValueError(
                f"{key} is {_text(number)}, but it must be {low} and at most {allowed.high:g}"
            )


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises ValueError if fields of a model are unknown or have values that no network has."""
    for key, value in fields.items():
        if key in WORDS:
            if not isinstance(value, str) or value not in WORDS[key]:
                raise ValueError(
                    f"{key} is {_text(value)}, but it must be one of {', '.join(WORDS[key])}"
                )
        elif key in NUMBERS:
            check_numbers(key, value, NUMBERS[key])
        else:
            raise ValueError(f"{_text(key)} is a field that this package does not know")
    if sum(fields.get("block_sizes", ())) > MAX_LAYERS:
        raise ValueError(
            f"block_sizes has {sum(fields['block_sizes'])} layers; {MAX_LAYERS} at most"
        )
    for key in ("growth_rate", "growth_rates"):
        rates, blocks = fields.get(key), fields.get("block_sizes")
        if blocks and isinstance(rates, tuple | list) and len(rates) != len(blocks):
            raise ValueError(f"{key} has {len(rates)} numbers for {len(blocks)} blocks")


def check_sizes(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if a model with these fields cannot have these tensors."""
    widest = max((n for tensor in tensors.values() for n in np.shape(tensor)), default=0)
    if sum(fields.get("block_sizes", ())) > len(tensors):
        raise ValueError(
            f"block_sizes is {fields['block_sizes']}, more layers than the {len(tensors)} tensors "
            "of the weights"
        )
    for key in ("growth_rate", "growth_rates", "stem_features", "in_channels"):
        value = fields.get(key, 0)
        if (largest := max(value) if isinstance(value, tuple | list) else value) > widest:
            raise ValueError(f"{key} is {largest}, but no tensor of the weights is so wide")


def check_preprocessing(values: Mapping[str, Any]) -> None:
    """Raises ValueError if images cannot be prepared with these values."""
    for key, value in values.items():
        check_numbers(key, value, PREPROCESSING[key])
    if len(values["mean"]) != len(values["std"]):
        raise ValueError(f"mean has {len(values['mean'])} numbers, and std {len(values['std'])}")
    if values["image_size"] / values["crop_fraction"] > PREPROCESSING["image_size"].high:
        raise ValueError(
            f"crop_pct is {values['crop_fraction']}, too small for images of "
            f"{values['image_size']} pixels"
        )


def _text(value: object) -> str:
    """Returns a value of a configuration for a message, shortened."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return str(value)
    return "a huge number" if isinstance(value, int) else shown(value)
