"""Reads how a preset of KerasHub prepares images, from the description of its image converter.

A converter resizes an image with values from 0 to 255, multiplies it by `scale`, and adds `offset`.
"""

import logging
import math
import os
from typing import Any

from densenet_jax.weights import ranges
from densenet_jax.weights.json_files import parse_json
from densenet_jax.weights.published import IMAGENET, Preprocessing

# The converter is in a file of its own, or in that of the preprocessor or of the whole task.
FILES = ("image_converter.json", "preprocessor.json", "task.json")

logger = logging.getLogger(__name__)


def read_preprocessing(folder: str) -> Preprocessing:
    """Returns the preprocessing of a preset; without a converter, ImageNet's, with a warning.

    Raises:
      WeightsError: a file is damaged, or images cannot be prepared as it says.
    """
    for path in (os.path.join(folder, name) for name in FILES):
        if os.path.isfile(path) and (found := parse_json(path, _parse)):
            return found
    logger.warning(
        "%s: the preset does not say how its images were prepared (it has no %s), so the mean and "
        "deviation of ImageNet are assumed.",
        *(folder, FILES[0]),
    )
    return IMAGENET


def _parse(contents: dict[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing in one of the files; None: it has no converter."""
    config = contents["config"]
    if "ImageConverter" not in contents["class_name"]:
        inner = config.get("image_converter") or config.get("preprocessor")
        return _parse(inner) if inner else None
    size = config.get("image_size") or (config.get("height"), config.get("width"))
    if size == (None, None):
        size = (IMAGENET.image_size,) * 2
    height, width = size
    if height != width:
        raise ValueError(
            f"image_size is {height} x {width}, but only square images can be prepared"
        )
    interpolation = config.get("interpolation", "bilinear")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f"interpolation is {str(interpolation)[:20]!r}, but images can be resized with bicubic "
            "or bilinear only"
        )
    padded = config.get("pad_to_aspect_ratio", False)
    cropped = config.get("crop_to_aspect_ratio", not padded)
    # Nine digits: float32 has no more, and 0.45599999999999996 was 0.456.
    mean, std = (tuple(float(f"{x:.9g}") for x in numbers) for numbers in _mean_and_std(config))
    values = {"image_size": height, "crop_fraction": 1.0, "mean": mean, "std": std}
    ranges.check_preprocessing(values)
    _warn(padded, config.get("antialias", False))
    return Preprocessing(
        image_size=height,
        crop_fraction=1.0,
        interpolation=interpolation,
        mean=mean,
        std=std,
        fit="pad" if padded else "crop" if cropped else "squash",
    )


def _mean_and_std(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and deviation of images from 0 to 1 that `scale` and `offset` stand for."""
    if "variance" in config:  # as older versions wrote it, for images multiplied by `scale`
        ones = [config["scale"] * 255.0] * len(config["mean"])
        std = tuple(math.sqrt(v) / one for v, one in zip(config["variance"], ones, strict=True))
        return tuple(m / one for m, one in zip(config["mean"], ones, strict=True)), std
    given = [config.get("scale"), config.get("offset")]
    scale, offset = (
        default if value is None else value
        for value, default in zip(given, (1.0, 0.0), strict=True)
    )
    channels = max((len(x) for x in (scale, offset) if isinstance(x, list)), default=3)
    scales, offsets = (x if isinstance(x, list) else [x] * channels for x in (scale, offset))
    std = tuple(1 / factor / 255 for factor in scales)
    return tuple(-shift * s for shift, s in zip(offsets, std, strict=True)), std


def _warn(padded: bool, antialias: bool) -> None:
    """Logs where images are prepared otherwise than by KerasHub."""
    if not antialias:
        logger.info(
            "KerasHub resizes the images of this preset without antialiasing, and this package "
            "with it; predictions for large images may differ slightly."
        )
    if padded:
        logger.warning(
            "KerasHub pads the images of this preset with black, and this package with the mean; "
            "predictions may differ."
        )
