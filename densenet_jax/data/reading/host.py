"""Decodes, crops and resizes one image on the host."""

import logging
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from densenet_jax.data.reading import limits, regions
from densenet_jax.data.reading.decoding import decode, dimensions, jpeg_header, orientation
from densenet_jax.data.reading.limits import ImageError, KindError
from densenet_jax.data.reading.regions import random_region
from densenet_jax.data.sources.source import RawImage

__all__ = [
    "ImageError",
    "KindError",
    "center_crop",
    "decode",
    "dimensions",
    "eval_crop",
    "random_region",
    "random_resized_crop",
    "resize",
    "train_crop",
]

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
FITS = ("crop", "squash", "pad")
FILTER_OF = {True: "bilinear", False: "bicubic"}  # of random regions; of whole training images
LARGE = 1 << 25  # pixels: JPEGs above are decoded at a reduced size for evaluation, too
_log = logging.getLogger(__name__)
_warned = False


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    interpolation: str,
    region: regions.Region = regions.WHOLE,
) -> np.ndarray:
    """Returns an image [H, W, C], or a part, resized to [height, width, C] by Pillow, antialiased.

    Args:
      image: uint8, uint16 or float32 [H, W, C].
      height, width: of the result in pixels.
      interpolation: "bicubic" or "bilinear".
      region: the part that is resized.
    """
    if image.shape[:2] == (height, width) and region == regions.WHOLE:
        return image
    top, left, h, w = region
    sides = image.shape[1], image.shape[0]
    ends = (left, top, min(left + w, 1.0), min(top + h, 1.0))
    box = tuple(end * side for end, side in zip(ends, sides * 2, strict=True))

    def resized(plane: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(picture.resize((width, height), FILTERS[interpolation], box))

    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        squeezed = image[..., 0] if image.shape[2] == 1 else image
        return resized(squeezed).reshape(height, width, image.shape[2])
    out = np.empty((height, width, image.shape[2]), image.dtype)
    # One channel at a time, because Pillow would treat a fourth one as alpha and multiply by it.
    for k in range(image.shape[2]):
        plane = image[..., k]
        if image.dtype == np.uint16:
            out[..., k] = resized(plane.astype(np.float32)).round().clip(0, 65535)
        else:
            out[..., k] = resized(plane)
    return out


def letterbox(
    image: np.ndarray, size: int, interpolation: str, fill: Sequence[float] = (0.0,)
) -> np.ndarray:
    """Returns the whole image in the middle of a square [size, size, C], with bands beside it.

    Args:
      image: [H, W, C].
      size: height and width of the result in pixels; the longer side of the image gets it.
      interpolation: "bicubic" or "bilinear".
      fill: value of the bands, one for all channels or one for each.
    """
    longest = max(image.shape[:2])
    height, width = (max(1, round(size * side / longest)) for side in image.shape[:2])
    out = np.empty((size, size, image.shape[2]), image.dtype)
    out[...] = np.asarray(fill).round() if image.dtype.kind == "u" else fill
    top, left = (size - height) // 2, (size - width) // 2
    out[top : top + height, left : left + width] = resize(image, height, width, interpolation)
    return out


def center_crop(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Returns the evaluation crop of an image, [size, size, C], as torchvision computes it.

    The shorter side is resized to size / fraction, then the central square is cut out.

    Args:
      image: [H, W, C].
      size: height and width of the result in pixels.
      fraction: share of the shorter side that the result shows, such as 0.875.
      interpolation: "bicubic" or "bilinear".
    """
    height, width = image.shape[:2]
    if max(height, width) > 8 * min(height, width):  # resizing a line would fill the memory
        half = 4 * min(height, width)
        image = image[max(0, height // 2 - half) :][: 2 * half]
        image = image[:, max(0, width // 2 - half) :][:, : 2 * half]
        height, width = image.shape[:2]
    short = math.floor(size / fraction)
    # As in torchvision's Resize, the longer side is truncated, not rounded.
    if height <= width:
        image = resize(image, short, int(short * width / height), interpolation)
    else:
        image = resize(image, int(short * height / width), short, interpolation)
    top = round((image.shape[0] - size) / 2)
    left = round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: bytes | np.ndarray,
    draws: np.ndarray,
    image_size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    channels: int = 3,
    out: np.ndarray | None = None,
    dtype: str | None = None,
    exif: bool = False,
) -> np.ndarray:
    """Returns a random region of an image as [image_size, image_size, channels].

    A region of at least twice the size is decoded at 1/2, 1/4 or 1/8, which averages pixels like an
    antialiasing filter and saves most of the time; bilinear interpolation does the rest.

    Args:
      image: encoded, or [H, W, C].
      draws: random numbers from 0 to 1, float64 [attempts, 4].
      image_size: height and width of the result in pixels.
      scale: range of the region's share of the image's area.
      channels: of the result, see `decode`.
      out: memory in which the result is written, which saves a copy; of the result's shape.
      dtype: type that the image must have; None: any.
      exif: whether to turn the image upright, see `decode`.

    Raises:
      KindError: the image has another number of channels or another type.
      ImageError: the image cannot be decoded.
    """
    header = None if isinstance(image, np.ndarray) else jpeg_header(image)
    if header and isinstance(image, bytes):
        height, width = header[:2]
        if exif and orientation(image) >= 5:
            height, width = width, height
        top, left, h, w = random_region(draws, height, width, scale)
        reduction = max((r for r in (1, 2, 4, 8) if min(h, w) >= r * image_size), default=1)
        pixels = typed(decode(image, channels, reduction, header, exif), dtype)
    else:
        pixels = typed(decode(image, channels, exif=exif), dtype)
        height, width = pixels.shape[:2]
        top, left, h, w = random_region(draws, height, width, scale)
    if pixels.shape[:2] != (height, width):  # the region's edges lie between pixels now
        down, right = pixels.shape[0] / height, pixels.shape[1] / width
        step_y, step_x = h * down / image_size, w * right / image_size
        to_source = np.array(
            [
                [step_x, 0, left * right + step_x / 2 - 0.5],
                [0, step_y, top * down + step_y / 2 - 0.5],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        resized = cv2.warpAffine(
            pixels,
            to_source,
            (image_size, image_size),
            out,
            flags=flags,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return resized.reshape(image_size, image_size, channels)
    return _shrunk(pixels[top : top + h, left : left + w], image_size, out)


def _shrunk(region: np.ndarray, size: int, out: np.ndarray | None) -> np.ndarray:
    """Returns a region [h, w, C] as [size, size, C], resized by OpenCV, into `out` if possible."""
    # OpenCV's AREA averages whole pixels. Only images that no decoder reduces shrink here: arrays
    # and formats other than JPEG.
    shrinks = min(region.shape[:2]) >= 2 * size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    channels = region.shape[2]
    if channels <= 4:  # as many as OpenCV averages together
        resized = cv2.resize(region, (size, size), out, interpolation=interpolation)
        return resized.reshape(size, size, channels)
    out = np.empty((size, size, channels), region.dtype) if out is None else out
    for k in range(0, channels, 4):
        some = np.ascontiguousarray(region[..., k : k + 4])
        resized = cv2.resize(some, (size, size), interpolation=interpolation)
        out[..., k : k + 4] = resized.reshape(size, size, -1)
    return out


def typed(pixels: np.ndarray, dtype: str | None, narrow: bool = False) -> np.ndarray:
    """Returns decoded pixels, if they have the type that they must have.

    Args:
      pixels: uint8, uint16 or float32 [H, W, C].
      dtype: the type; None: any.
      narrow: whether 16 bits may become the upper 8.

    Raises:
      KindError: the type is another one.
    """
    global _warned
    if dtype is None or pixels.dtype == dtype:
        return pixels
    if narrow and dtype == "uint8" and pixels.dtype == np.uint16:
        if pixels.max() < 4096 and not _warned:
            _warned = True
            _log.warning(
                "Images of 16 bits use a sixteenth of their range or less, and become nearly black "
                "for a model of 8 bits: convert them first, or train with data.value_range."
            )
        return (pixels >> 8).astype(np.uint8)
    raise KindError(f"it has {pixels.dtype} pixels instead of {dtype}")


def train_crop(
    image: bytes | np.ndarray | RawImage,
    draws: np.ndarray | None,
    *,
    image_size: int,
    channels: int,
    random_crop: bool,
    crop_scale: tuple[float, float],
    fit: str = "crop",
    fill: Sequence[float] = (0.0,),
    dtype: str = "uint8",
    exif: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a training image, [image_size, image_size, channels].

    Args:
      image: encoded, [H, W, C], or raw.
      draws: random numbers from 0 to 1, float64 [attempts, 4]; None if `random_crop` is not set.
      image_size: height and width of the result in pixels.
      channels: of the result, see `decode`.
      random_crop: whether to cut out a random region; otherwise the whole image is used.
      crop_scale: range of the region's share of the image's area.
      fit: "pad": a whole image gets bands beside it; otherwise it is distorted to a square; both
        with bicubic interpolation.
      fill: value of the bands, see `letterbox`.
      dtype: type that the image must have: "uint8", "uint16" or "float32".
      exif: whether to turn the image upright, see `decode`.
      out: memory in which the result may be written, of the result's shape.

    Raises:
      KindError: the image has another number of channels or another type.
      ImageError: the image cannot be decoded.
    """
    if isinstance(image, RawImage):
        pixels = typed(decode(image, channels), dtype)
        region = regions.shown_in_training(draws, image.height, image.width, crop_scale)
        return resize(pixels, image_size, image_size, FILTER_OF[random_crop], region)
    with limits.reading():
        if random_crop:
            assert draws is not None
            return random_resized_crop(
                image, draws, image_size, crop_scale, channels, out, dtype, exif
            )
        pixels = typed(decode(image, channels, exif=exif), dtype)
        if fit == "pad":
            return letterbox(pixels, image_size, "bicubic", fill)
        return resize(pixels, image_size, image_size, "bicubic")


def eval_crop(
    image: bytes | np.ndarray | RawImage,
    *,
    image_size: int,
    channels: int,
    crop_fraction: float,
    interpolation: str,
    fit: str = "crop",
    fill: Sequence[float] = (0.0,),
    dtype: str = "uint8",
    exif: bool = False,
    narrow: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns an image as evaluation shows it, [image_size, image_size, channels].

    Args:
      image: encoded, [H, W, C], or raw.
      image_size: height and width of the result in pixels.
      channels: of the result, see `decode`.
      crop_fraction: share of the shorter side that a crop shows, such as 0.875.
      interpolation: "bicubic" or "bilinear".
      fit: "crop": the central square; "squash": the whole image, distorted to a square; "pad": the
        whole image with bands beside it.
      fill: value of the bands, see `letterbox`.
      dtype: type that the image must have: "uint8", "uint16" or "float32".
      exif: whether to turn the image upright, see `decode`.
      narrow: whether the upper 8 of 16 bits are taken if `dtype` is "uint8".
      out: not used.

    Raises:
      KindError: the image has another number of channels or another type.
      ImageError: the image cannot be decoded.
    """
    if isinstance(image, RawImage):
        pixels = typed(decode(image, channels), dtype)
        region = regions.shown_in_evaluation(
            image.height, image.width, image_size, crop_fraction, fit
        )
        return resize(pixels, image_size, image_size, interpolation, region)
    with limits.reading():
        header = None if isinstance(image, np.ndarray) else jpeg_header(image)
        reduction = 1
        if header and header[0] * header[1] > LARGE:
            short = min(header[:2])
            wanted = math.ceil(image_size / crop_fraction)
            reduction = max((r for r in (1, 2, 4, 8) if short >= 2 * r * wanted), default=1)
        pixels = typed(decode(image, channels, reduction, header, exif), dtype, narrow)
        if fit == "pad":
            return letterbox(pixels, image_size, interpolation, fill)
        if fit == "squash":
            return resize(pixels, image_size, image_size, interpolation)
        return center_crop(pixels, image_size, crop_fraction, interpolation)
