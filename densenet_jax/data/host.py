"""Decoding and cropping of one image, on the host; uint8 in, uint8 out."""

import io
import math

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

cv2.setNumThreads(0)  # the pipeline has a thread or a process per image already
Image.MAX_IMAGE_PIXELS = None  # replaced by the limit below, which raises before decoding
MAX_PIXELS = 178_956_970  # Pillow's own threshold against decompression bombs

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class ImageError(ValueError):
    """An image that cannot be decoded."""


def decode(image: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """Returns an image as uint8 [H, W, channels]; arrays pass through.

    Grayscale becomes RGB (and the reverse, for one channel), CMYK and palettes are converted, and
    the EXIF orientation is ignored, as torchvision and timm do.

    Raises:
      ImageError: not an image, a broken one, or one of more than 179 million pixels.
    """
    if isinstance(image, np.ndarray):
        return np.broadcast_to(image, (*image.shape[:2], channels)) if image.ndim == 3 else image
    try:
        with Image.open(io.BytesIO(image)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"the image has {picture.width}x{picture.height} pixels")
            array = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
        raise ImageError(f"the image cannot be decoded: {e}") from e
    return array[..., None] if channels == 1 else array


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes uint8 [H, W, C] as Pillow does (antialiased)."""
    if image.shape[:2] == (height, width):
        return image
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(np.ascontiguousarray(squeezed)).resize(
        (width, height), FILTERS[interpolation]
    )
    return np.asarray(resized).reshape(height, width, image.shape[2])


def center_crop(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Returns the evaluation crop: shorter side to size / fraction, then the central size x size."""
    height, width = image.shape[:2]
    short = math.floor(size / fraction)
    # torchvision's Resize: the longer side is truncated, not rounded.
    if height <= width:
        image = resize(image, short, int(short * width / height), interpolation)
    else:
        image = resize(image, int(short * height / width), short, interpolation)
    top = round((image.shape[0] - size) / 2)
    left = round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Returns a random region, resized to size x size (Szegedy et al., 2015).

    Args:
      image: uint8 [H, W, C].
      scale: range of the region's share of the area.
      ratio: range of its width / height, log-uniform.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            break
    else:  # the central region nearest to the range of ratios, as torchvision does
        w = min(width, round(height * ratio[1]))
        h = min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    # INTER_AREA averages, so shrinking is antialiased at a fraction of Pillow's time.
    shrinks = h * w > size * size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    region = np.ascontiguousarray(image[top : top + h, left : left + w])
    resized = cv2.resize(region, (size, size), interpolation=interpolation)
    return resized.reshape(size, size, image.shape[2])
