"""Reads and writes timm's `config.json`, which stores the network and preprocessing of weights.

Networks that timm's arguments cannot describe, such as those for 32x32 images, are described under
an additional key of our own, which timm ignores.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from densenet_jax.models.variants import identify
from densenet_jax.weights.published import IMAGENET, Preprocessing
from densenet_jax.weights.readers.bounded_file import WeightsError

CONFIG_FILE = "config.json"
MAX_BYTES = 1 << 20
OWN = "densenet_jax"
MAX_LIST = 64  # numbers in a field, one for each block of the network
MAX_LAYERS = 4096  # in a block; no number in a field may exceed its square
TIMM_MODELS = (
    *("densenet121", "densenet161", "densenet169", "densenet201", "densenet264d"),
    *("densenetblur121d", "rdnet_tiny", "rdnet_small", "rdnet_base", "rdnet_large"),
)

# timm's arguments -> our fields; lists become tuples.
_FIELDS = {
    "growth_rate": "growth_rate",
    "block_config": "block_sizes",
    "bn_size": "bottleneck_width",
    "num_init_features": "stem_features",
    "growth_rates": "growth_rates",
    "num_blocks_list": "block_sizes",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path_rate",
    "proj_drop_rate": "dropout_rate",
    "act_layer": "activation",
    "global_pool": "global_pool",
}


class Config(NamedTuple):
    """The contents of timm's file.

    Attributes:
      model: name of the variant.
      fields: fields of the model that differ from the variant.
      preprocessing: how the images were prepared.
      licence: licence of the weights; None: unknown.
    """

    model: str
    fields: dict[str, Any]
    preprocessing: Preprocessing
    licence: str | None


def read_config(folder: str) -> Config | None:
    """Returns the configuration in a folder; None: the folder has none, or it is not timm's.

    Raises:
      WeightsError: the file is damaged.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    if os.path.getsize(path) > MAX_BYTES:
        raise WeightsError(
            f"{path}: it has over {MAX_BYTES} bytes, so it is not a configuration; remove it."
        )
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict) or "architecture" not in config:
            return None
        return _parse(config)
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: it is not timm's configuration ({error}); download it again."
        ) from error


def to_config(
    model: nn.Module,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    licence: str | None = None,
) -> dict[str, Any]:
    """Returns the contents of `config.json` for a model; `read_config` reads them.

    Args:
      model: the model.
      preprocessing: how to prepare the images.
      class_names: names of the classes in label order; may be empty.
      licence: licence of the weights; None: unknown.

    Returns:
      {"architecture": ..., "num_classes": ..., "model_args": {...}, "pretrained_cfg": {...},
      "densenet_jax": {"model": name of the variant, "fields": {...}}}, ready for JSON.
    """
    name, fields = identify(model)
    theirs = {ours: key for key, ours in _FIELDS.items()}
    if name.startswith("densenet"):
        theirs["block_sizes"] = "block_config"
    size, channels = preprocessing.image_size, model.in_channels
    # The number of classes has its own key, and the other two affect only training.
    left_out = {"num_classes", "dropout_rate", "drop_path_rate"}
    if fits_timm(model):
        # timm has no such argument and derives the features from the growth rate.
        left_out.add("stem_features")
    args = {theirs[k]: v for k, v in fields.items() if k in theirs and k not in left_out}
    rdnet = name.startswith("rdnet")
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        **({"label_names": list(class_names)} if class_names else {}),
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_fraction,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": model.num_classes,
            "first_conv": "stem.0" if rdnet else "features.conv0",
            "classifier": "head.fc" if rdnet else "classifier",
            **({"license": licence} if licence else {}),
        },
        OWN: {"model": name, "fields": fields},
    }


def fits_timm(model: nn.Module) -> bool:
    """Returns whether timm can create a model of this architecture."""
    name, fields = identify(model)
    free = {"num_classes", "in_channels", "dropout_rate", "drop_path_rate", "freeze_statistics"}
    timms = set()
    if not name.startswith("rdnet") and isinstance(model.growth_rate, int):
        timms = {"growth_rate", "block_sizes", "activation", "global_pool"}
        if model.stem_features == 2 * model.growth_rate:
            timms.add("stem_features")
    return name in TIMM_MODELS and set(fields) - free <= timms


def _parse_own(own: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the variant and its fields; raises ValueError for fields that no network has."""
    fields = {}
    for key, value in own["fields"].items():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > MAX_LIST:
            raise ValueError(f"{key} has more than {MAX_LIST} numbers")
        for number in numbers:
            if isinstance(number, str) and len(number) < 32:
                continue
            if not isinstance(number, int | float) or not 0 <= number <= MAX_LAYERS**2:
                raise ValueError(f"{key} cannot be {str(number)[:32]}")
            if key == "block_sizes" and number > MAX_LAYERS:
                raise ValueError(f"{key} cannot be {number}")
        fields[key] = tuple(value) if isinstance(value, list) else value
    return str(own["model"]), fields


def _parse(config: dict[str, Any]) -> Config:
    """Returns the contents of a parsed `config.json`."""
    # In older files, the contents of `pretrained_cfg` are at the top level.
    weights = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    fields = {
        ours: tuple(int(n) for n in value) if isinstance(value, list) else value
        for theirs, ours in _FIELDS.items()
        if (value := arguments.get(theirs)) is not None
    }
    if "growth_rate" in fields and "stem_features" not in fields:
        fields["stem_features"] = 2 * fields["growth_rate"]  # as timm derives them
    known = {key: value for key, value in weights.items() if value is not None}
    interpolation = known.get("interpolation")
    preprocessing = Preprocessing(
        image_size=int(known.get("input_size", (3, IMAGENET.image_size))[-1]),
        crop_fraction=float(known.get("crop_pct", IMAGENET.crop_fraction)),
        interpolation="bilinear" if interpolation == "bilinear" else IMAGENET.interpolation,
        mean=tuple(float(x) for x in known.get("mean", IMAGENET.mean)),
        std=tuple(float(x) for x in known.get("std", IMAGENET.std)),
    )
    name = str(config["architecture"])
    if isinstance(own := config.get(OWN), dict):
        name, fields = _parse_own(own)
    return Config(name, fields, preprocessing, known.get("license"))
