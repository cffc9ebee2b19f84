"""The `config.json` that timm puts beside weights: which network, and how images were prepared.

Read and written.  What timm's arguments cannot say (networks for 32x32 images) stands under a key
of our own, which timm passes over.
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
MAX_LIST = 64  # numbers in a field: blocks of a network
MAX_LAYERS = 4096  # that a field may ask for
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
    """What timm's file says: the variant, fields that differ from it, preprocessing, licence."""

    model: str
    fields: dict[str, Any]
    preprocessing: Preprocessing
    licence: str | None


def read_config(folder: str) -> Config | None:
    """Returns the configuration of a folder; None where there is none, or it is not timm's.

    Raises:
      WeightsError: the file is broken.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    if os.path.getsize(path) > MAX_BYTES:
        raise WeightsError(f"{path}: over {MAX_BYTES} bytes is no configuration; remove it.")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict) or "architecture" not in config:
            return None
        return _parse(config)
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: it is not timm's ({error}); download it again.") from error


def to_config(
    model: nn.Module,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    licence: str | None = None,
) -> dict[str, Any]:
    """Returns the configuration of a model, as `config.json` has it; see `read_config`."""
    name, fields = identify(model)
    theirs = {ours: key for key, ours in _FIELDS.items()}
    if name.startswith("densenet"):
        theirs["block_sizes"] = "block_config"
    size, channels = preprocessing.image_size, model.in_channels
    unsaid = {"num_classes", "dropout_rate", "drop_path_rate"}  # the last two are for training
    if fits_timm(model):
        unsaid.add("stem_features")  # no argument there: it follows from the growth rate
    args = {theirs[k]: v for k, v in fields.items() if k in theirs and k not in unsaid}
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
    """Returns whether timm has a model of this shape."""
    name, fields = identify(model)
    free = {"num_classes", "in_channels", "dropout_rate", "drop_path_rate", "freeze_statistics"}
    timms = set()
    if not name.startswith("rdnet") and isinstance(model.growth_rate, int):
        timms = {"growth_rate", "block_sizes", "activation", "global_pool"}
        if model.stem_features == 2 * model.growth_rate:
            timms.add("stem_features")
    return name in TIMM_MODELS and set(fields) - free <= timms


def _parse_own(own: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the variant and its fields; ValueError for what no network has."""
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
    # Older files have the contents of `pretrained_cfg` at the top.
    weights = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    fields = {
        ours: tuple(int(n) for n in value) if isinstance(value, list) else value
        for theirs, ours in _FIELDS.items()
        if (value := arguments.get(theirs)) is not None
    }
    if "growth_rate" in fields and "stem_features" not in fields:
        fields["stem_features"] = 2 * fields["growth_rate"]  # timm has no other stem
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
