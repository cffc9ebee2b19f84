"""Arrays to pictures: overlays of heat on an image, and images as text inside a page."""

import base64
import io

import numpy as np
from PIL import Image


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 1] or [H, W, 3] as [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image


def scaled(heat: np.ndarray) -> np.ndarray:
    """Returns what speaks for a class, from 0 to 1: negative values count as nothing."""
    heat = np.nan_to_num(np.asarray(heat, np.float32)).clip(0)
    return heat / heat.max() if heat.max() > 0 else heat


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Returns an image with a map on top, uint8 [H, W, 3].

    Args:
      image: uint8 [H, W, 1 or 3].
      heat: [h, w], of any size and scale; where it is not positive, the image stays as it is.
      strength: opacity of the greatest value.
    """
    from matplotlib import colormaps  # a third of a second that others need not pay

    height, width = image.shape[:2]
    heat = Image.fromarray(scaled(heat)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(heat).clip(0, 1)[..., None]
    colours = colormaps["turbo"](0.15 + 0.8 * heat[..., 0])[..., :3] * 255
    opacity = strength * np.sqrt(heat)
    mixed = to_rgb(image) * (1 - opacity) + colours * opacity
    return mixed.round().astype(np.uint8)


def thumbnail(image: np.ndarray, side: int = 112) -> np.ndarray:
    """Returns uint8 [H, W, C] with no side longer than `side`."""
    longest = max(image.shape[:2])
    if longest <= side:
        return image
    height, width = (max(1, round(n * side / longest)) for n in image.shape[:2])
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    small = Image.fromarray(squeezed).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small).reshape(height, width, image.shape[2])


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Returns an image whose pixels are larger squares, so that a map on top of it has room.

    Args:
      image: uint8 [H, W, C].
      side: what the longer side must not exceed, unless it does already.
    """
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def data_uri(image: np.ndarray) -> str:
    """Returns uint8 [H, W, 1 or 3] as a data URI: PNG where it is small, JPEG otherwise."""
    kind, options = ("png", {}) if image.size < 64 * 64 * 3 else ("jpeg", {"quality": 82})
    file = io.BytesIO()
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(squeezed)).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
