"""Pictures from arrays: overlays of maps on images, thumbnails, and data URIs for the page."""

import base64
import io

import numpy as np
from PIL import Image


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 1] or [H, W, 3] as [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image


def shown(image: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Returns an image of any kind as uint8 [H, W, 1 or 3].

    Of images with another number of channels, 3 or 4 are shown as RGB, others as their mean.

    Args:
      image: [H, W, C].
      ends: the numbers that are black and white.
    """
    channels = image.shape[2]
    if channels == 4:
        image = image[..., :3]
    elif channels not in (1, 3):
        image = image.astype(np.float32).mean(axis=2, keepdims=True)
    if image.dtype == np.uint8 and ends == (0, 255):
        return image
    low, high = ends
    return ((image.astype(np.float32) - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def scaled(heat: np.ndarray) -> np.ndarray:
    """Returns a map [h, w] scaled to the range 0 to 1; negative values and NaN become 0."""
    heat = np.nan_to_num(np.asarray(heat, np.float32)).clip(0)
    return heat / heat.max() if heat.max() > 0 else heat


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Returns an image with a coloured map on top, uint8 [H, W, 3].

    Args:
      image: uint8 [H, W, 1 or 3].
      heat: [h, w], of any size and scale; where it is not positive, the image is unchanged.
      strength: opacity of the map's largest value.
    """
    # Imported here because it takes a third of a second, which other uses of the module save.
    from matplotlib import colormaps

    height, width = image.shape[:2]
    resized = Image.fromarray(scaled(heat)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(resized).clip(0, 1)[..., None]
    colours = colormaps["turbo"](0.15 + 0.8 * heat[..., 0])[..., :3] * 255
    opacity = strength * np.sqrt(heat)
    mixed = to_rgb(image) * (1 - opacity) + colours * opacity
    return mixed.round().astype(np.uint8)


def thumbnail(image: np.ndarray, side: int = 112) -> np.ndarray:
    """Returns an image uint8 [H, W, C], reduced if a side is longer than `side`."""
    longest = max(image.shape[:2])
    if longest <= side:
        return image
    height, width = (max(1, round(n * side / longest)) for n in image.shape[:2])
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    small = Image.fromarray(squeezed).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small).reshape(height, width, image.shape[2])


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Returns a small image with each pixel repeated, so that a map on top has a finer resolution.

    Args:
      image: uint8 [H, W, C].
      side: the longer side is enlarged to at most this number of pixels; larger images are
        unchanged.
    """
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def data_uri(image: np.ndarray) -> str:
    """Returns an image uint8 [H, W, 1 or 3] as a data URI: small ones as PNG, others as JPEG."""
    kind, options = ("png", {}) if image.size < 64 * 64 * 3 else ("jpeg", {"quality": 82})
    file = io.BytesIO()
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(squeezed)).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
