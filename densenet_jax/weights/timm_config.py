"""Reads and writes timm's `config.json`, which stores the network and preprocessing of weights.

Networks that timm's arguments cannot describe, such as those for 32x32 images, are described under
an additional key of our own, which timm ignores.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from densenet_jax.models.variants import FAMILY, VARIANTS, identify
from densenet_jax.tasks.outputs import SOFTMAX, Outputs, from_spec
from densenet_jax.weights import ranges
from densenet_jax.weights.json_files import parse_json
from densenet_jax.weights.published import IMAGENET, Preprocessing
from densenet_jax.weights.readers.bounded_file import shown

CONFIG_FILE = "config.json"
OWN = "densenet_jax"
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


# Arguments that change neither the values nor the names of a network in evaluation.
_HARMLESS = {
    *("memory_efficient", "drop_rate", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only"),
}
# Arguments that may be said, if they say what the network has anyway.
_DEFAULTS: dict[str, Any] = {
    **{"norm_layer": "batchnorm2d", "aa_layer": "", "stem_type": "", "bias": False},
}
_INTERPOLATIONS = ("bicubic", "bilinear")
# Fields of `Preprocessing` that timm's file has no keys for.
_IMAGES = ("dtype", "value_range", "exif")
# timm's `crop_mode` -> our `fit`.
_FITS = {"center": "crop", "squash": "squash", "border": "pad"}


class Config(NamedTuple):
    """The contents of timm's file.

    Attributes:
      model: name of the variant.
      fields: fields of the model that differ from the variant.
      preprocessing: how the images were prepared.
      licence: licence of the weights; None: unknown.
      outputs: how the outputs become probabilities or numbers.
      class_names: in label order; None: unknown.
    """

    model: str
    fields: dict[str, Any]
    preprocessing: Preprocessing
    licence: str | None
    outputs: Outputs = SOFTMAX
    class_names: tuple[str, ...] | None = None


def read_config(folder: str) -> Config | None:
    """Returns the configuration in a folder; None: the folder has none, or it is not timm's.

    Raises:
      WeightsError: the file is damaged, or says something that this package does not understand.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    return parse_json(path, lambda config: _parse(config) if "architecture" in config else None)


def to_config(
    model: nn.Module,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    licence: str | None = None,
    outputs: Outputs = SOFTMAX,
) -> dict[str, Any]:
    """Returns the contents of `config.json` for a model; `read_config` reads them.

    Args:
      model: the model.
      preprocessing: how to prepare the images.
      class_names: names of the classes in label order; may be empty.
      licence: licence of the weights; None: unknown.
      outputs: how the outputs become probabilities or numbers.

    Returns:
      {"architecture": ..., "num_classes": ..., "model_args": {...}, "pretrained_cfg": {...},
      "densenet_jax": {"model": name of the variant, "fields": {...}, "outputs": {...},
      "images": {...}}}, ready for JSON.
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
            "crop_pct": preprocessing.crop_fraction if preprocessing.fit == "crop" else 1.0,
            "crop_mode": {ours: theirs for theirs, ours in _FITS.items()}[preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": model.num_classes,
            "first_conv": "stem.0" if rdnet else "features.conv0",
            "classifier": "head.fc" if rdnet else "classifier",
            **({"license": licence} if licence else {}),
        },
        OWN: {
            "model": name,
            "fields": fields,
            "outputs": outputs.spec(),
            "images": {key: getattr(preprocessing, key) for key in _IMAGES},
        },
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
    fields = own["fields"]
    if not isinstance(fields, dict):
        raise ValueError(f"the fields of {OWN} are not a JSON object")
    return own["model"], {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _parse_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of timm's arguments; raises ValueError for those that change the network
    in a way that this package does not know."""
    fields = {}
    for key, value in arguments.items():
        if value is None or key in _HARMLESS or _DEFAULTS.get(key, ()) == value:
            continue
        if key not in _FIELDS:
            raise ValueError(f"model_args has {key}, which this package does not know")
        fields[_FIELDS[key]] = tuple(value) if isinstance(value, list) else value
    if isinstance(fields.get("growth_rate"), int) and "stem_features" not in fields:
        fields["stem_features"] = 2 * fields["growth_rate"]  # as timm derives them
    return fields


def _parse_preprocessing(known: dict[str, Any]) -> Preprocessing:
    """Returns timm's preprocessing; raises ValueError for what the data pipeline cannot do."""
    size = known.get("input_size", (3, IMAGENET.image_size, IMAGENET.image_size))
    if not isinstance(size, list | tuple) or len(size) not in (2, 3) or size[-1] != size[-2]:
        raise ValueError(f"input_size is {str(size)[:40]}, but only square images can be prepared")
    interpolation = known.get("interpolation", IMAGENET.interpolation)
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {str(interpolation)[:20]!r}, but images can be resized with "
            f"{' or '.join(_INTERPOLATIONS)} only"
        )
    mode = known.get("crop_mode", "center")
    if mode not in _FITS:
        raise ValueError(f"crop_mode is {str(mode)[:20]!r}; known are {', '.join(_FITS)}")
    values = {
        "image_size": size[-1],
        "crop_fraction": known.get("crop_pct", IMAGENET.crop_fraction),
        "mean": known.get("mean", IMAGENET.mean),
        "std": known.get("std", IMAGENET.std),
    }
    ranges.check_preprocessing(values)
    if mode != "center" and values["crop_fraction"] != 1:
        raise ValueError(
            f"crop_mode is {mode!r} with a crop_pct of {values['crop_fraction']}, but only whole "
            "images (crop_pct 1) can be prepared so"
        )
    return Preprocessing(
        image_size=values["image_size"],
        crop_fraction=float(values["crop_fraction"]),
        interpolation=interpolation,
        mean=tuple(map(float, values["mean"])),
        std=tuple(map(float, values["std"])),
        fit=_FITS[mode],
    )


def _parse(config: dict[str, Any]) -> Config:
    """Returns the contents of a parsed `config.json`."""
    # In older files, the contents of `pretrained_cfg` are at the top level.
    weights = config.get("pretrained_cfg", config)
    arguments, own = config.get("model_args") or {}, config.get(OWN)
    for key, value in {"pretrained_cfg": weights, "model_args": arguments}.items():
        if not isinstance(value, dict):
            raise ValueError(f"{key} is not a JSON object")
    name, fields = config["architecture"], _parse_arguments(arguments)
    if isinstance(own, dict):
        name, fields = _parse_own(own)
    if not isinstance(name, str) or name not in (*VARIANTS, FAMILY):
        raise ValueError(f"this package does not have the architecture {shown(name)}")
    ranges.check_fields(fields)
    known = {key: value for key, value in weights.items() if value is not None}
    licence = known.get("license")
    if licence is not None and not (
        isinstance(licence, str) and len(licence) <= 100 and licence.isprintable()
    ):
        raise ValueError("its license is not a short text")
    preprocessing, outputs, names = _parse_preprocessing(known), SOFTMAX, None
    if isinstance(own, dict):
        count = config.get("num_classes")
        if "images" in own:
            preprocessing = dataclasses.replace(preprocessing, **_parse_images(own["images"]))
        if "outputs" in own and isinstance(count, int):
            outputs = from_spec(own["outputs"], count)
        names = _parse_names(config.get("label_names"), count)
    return Config(name, fields, preprocessing, licence, outputs, names)


def _parse_images(given: Any) -> dict[str, Any]:
    """Returns the fields of `Preprocessing` that are ours alone."""
    if not isinstance(given, dict) or given.keys() != set(_IMAGES):
        raise ValueError(f"the images of {OWN} are not understood")
    low_high = given["value_range"]
    known = given["dtype"] in ("uint8", "uint16", "float32") and isinstance(given["exif"], bool)
    ends = isinstance(low_high, list) and all(
        isinstance(v, int | float) and abs(v) < math.inf for v in low_high
    )
    if not known or not ends or sorted(set(low_high)) != low_high or len(low_high) not in (0, 2):
        raise ValueError(f"the images of {OWN} are not understood")
    return given | {"value_range": tuple(low_high)}


def _parse_names(given: Any, count: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes in an export of this package; None: it has none."""
    if given is None:
        return None
    names = given if isinstance(given, list) else []
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError("label_names must be one name for each class")
    return tuple(names)
