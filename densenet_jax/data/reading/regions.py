"""Computes which region of an image is used in training and evaluation; nothing is resized here.

Raw images (`RawImage`) are squares that were made from whole images, so a region of the original,
given as shares of its sides, is a rectangle of the square.
"""

import math

import numpy as np

from densenet_jax.data.sources.source import DataError, Source

Region = tuple[float, float, float, float]  # top, left, height, width, as shares of the sides
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


def random_region(
    draws: np.ndarray,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of a random region in pixels (Szegedy et al., 2015).

    Args:
      draws: random numbers from 0 to 1, float64 [attempts, 4].
      height, width: of the image in pixels.
      scale: range of the region's share of the image's area.
      ratio: range of the region's width / height, whose logarithm is uniform.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for size, shape, down, right in draws.tolist():
        area = height * width * (scale[0] + size * (scale[1] - scale[0]))
        aspect = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    # As in torchvision: the central region whose shape is nearest to the range of ratios.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def shown_in_training(
    draws: np.ndarray | None, height: int, width: int, scale: tuple[float, float]
) -> Region:
    """Returns the region that training shows of an image.

    Args:
      draws: random numbers from 0 to 1, float64 [attempts, 4]; None: the whole image is shown.
      height, width: of the image in pixels.
      scale: range of the region's share of the image's area.
    """
    if draws is None:
        return WHOLE
    top, left, h, w = random_region(draws, height, width, scale)
    return top / height, left / width, h / height, w / width


def shown_in_evaluation(height: int, width: int, size: int, fraction: float, fit: str) -> Region:
    """Returns the region that evaluation shows of an image, as `host.center_crop` cuts it out.

    Args:
      height, width: of the image in pixels.
      size: height and width of the result in pixels.
      fraction: share of the shorter side that a crop shows, such as 0.875.
      fit: "crop": the central square; "squash": the whole image.
    """
    if fit == "squash":
        return WHOLE
    short = math.floor(size / fraction)
    sides = [int(short * side / min(height, width)) for side in (height, width)]  # when resized
    top, left = (round((side - size) / 2) for side in sides)
    return top / sides[0], left / sides[1], size / sides[0], size / sides[1]


def box(region: Region, side: int) -> np.ndarray:
    """Returns a region as a rectangle of a square: top, left, height, width in pixels, float32."""
    return np.array(region, np.float32) * side


def check(source: Source, fit: str, exif: bool) -> None:
    """Raises DataError for options that raw images do not have."""
    if source.raw_side and fit == "pad":
        raise DataError(
            f"{source.name} has raw images, which cannot be padded: pass --config.data.fit=crop or "
            "--config.data.fit=squash, or prepare the data set without --raw."
        )
    if source.raw_side and exif:
        raise DataError(
            f"{source.name} has raw images, whose EXIF orientation is not stored: pass "
            "--config.data.exif=False, or prepare the data set without --raw."
        )
