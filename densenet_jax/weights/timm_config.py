"""The `config.json` that timm puts beside weights: which network, and how images were prepared."""

import json
import os
from typing import Any, NamedTuple

from densenet_jax.weights.published import IMAGENET, Preprocessing
from densenet_jax.weights.source import WeightsError

CONFIG_FILE = "config.json"
MAX_BYTES = 1 << 20

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
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(f"{path}: it is not timm's ({error}); download it again.") from error


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
    return Config(str(config["architecture"]), fields, preprocessing, known.get("license"))
