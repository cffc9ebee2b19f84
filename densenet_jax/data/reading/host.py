"""Decodes, crops and resizes one image on the host: encoded bytes or uint8 in, uint8 out."""

import math

import cv2
import numpy as np
from PIL import Image

from densenet_jax.data.reading.decoding import ImageError, decode, dimensions, jpeg_header

__all__ = [
    "ImageError",
    "center_crop",
    "decode",
    "eval_crop",
    "random_resized_crop",
    "resize",
    "train_crop",
]

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Returns uint8 [H, W, C] resized to [height, width, C] by Pillow, with antialiasing.

    Args:
      image: uint8 [H, W, C].
      height, width: of the result in pixels.
      interpolation: "bicubic" or "bilinear".
    """
    if image.shape[:2] == (height, width):
        return image
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(np.ascontiguousarray(squeezed)).resize(
        (width, height), FILTERS[interpolation]
    )
    return np.asarray(resized).reshape(height, width, image.shape[2])


def center_crop(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Returns the evaluation crop of an image, uint8 [size, size, C], as torchvision computes it.

    The shorter side is resized to size / fraction, then the central square is cut out.

    Args:
      image: uint8 [H, W, C].
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


def random_resized_crop(
    image: bytes | np.ndarray,
    draws: np.ndarray,
    image_size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    channels: int = 3,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a random region of an image as uint8 [image_size, image_size, channels].

    A region of at least twice the size is decoded at 1/2, 1/4 or 1/8, which averages pixels like an
    antialiasing filter and saves most of the time; bilinear interpolation does the rest.

    Args:
      image: encoded, or uint8 [H, W, C].
      draws: random numbers from 0 to 1, float64 [attempts, 4].
      image_size: height and width of the result in pixels.
      scale: range of the region's share of the image's area.
      channels: 3 or 1.
      out: memory in which the result is written, which saves a copy; uint8 of the result's shape.

    Raises:
      ImageError: the image cannot be decoded.
    """
    header = None if isinstance(image, np.ndarray) else jpeg_header(image)
    height, width = header[:2] if header else dimensions(image)
    top, left, h, w = random_region(draws, height, width, scale)
    reduction = max((r for r in (1, 2, 4, 8) if min(h, w) >= r * image_size), default=1)
    pixels = decode(image, channels, reduction, header)
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
    region = pixels[top : top + h, left : left + w]
    # OpenCV's AREA averages whole pixels. Only images that no decoder reduces shrink here: arrays
    # and formats other than JPEG.
    shrinks = min(region.shape[:2]) >= 2 * image_size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(region, (image_size, image_size), out, interpolation=interpolation)
    return resized.reshape(image_size, image_size, channels)


def train_crop(
    image: bytes | np.ndarray,
    draws: np.ndarray | None,
    *,
    image_size: int,
    channels: int,
    random_crop: bool,
    crop_scale: tuple[float, float],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a training image, uint8 [image_size, image_size, channels].

    Args:
      image: encoded, or uint8 [H, W, C].
      draws: random numbers from 0 to 1, float64 [attempts, 4]; None if `random_crop` is not set.
      image_size: height and width of the result in pixels.
      channels: 3 or 1.
      random_crop: whether to cut out a random region; otherwise the whole image is resized to a
        square with bicubic interpolation.
      crop_scale: range of the region's share of the image's area.
      out: memory in which the result may be written, uint8 of the result's shape.

    Raises:
      ImageError: the image cannot be decoded.
    """
    if random_crop:
        assert draws is not None
        return random_resized_crop(image, draws, image_size, crop_scale, channels, out)
    return resize(decode(image, channels), image_size, image_size, "bicubic")


def eval_crop(
    image: bytes | np.ndarray,
    *,
    image_size: int,
    channels: int,
    crop_fraction: float,
    interpolation: str,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the evaluation crop of an image, uint8 [image_size, image_size, channels].

    Args:
      image: encoded, or uint8 [H, W, C].
      image_size: height and width of the result in pixels.
      channels: 3 or 1.
      crop_fraction: share of the shorter side that the result shows, such as 0.875.
      interpolation: "bicubic" or "bilinear".
      out: not used.

    Raises:
      ImageError: the image cannot be decoded.
    """
    return center_crop(decode(image, channels), image_size, crop_fraction, interpolation)
