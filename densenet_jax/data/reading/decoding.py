"""Decodes images to uint8 arrays, with a limit on the number of pixels.

OpenCV decodes ordinary JPEGs, at a reduced size if that is enough. Pillow decodes all other files,
and those that OpenCV refuses. If simplejpeg is installed, it replaces OpenCV at full size, where it
is about 6 % faster. All three contain libjpeg-turbo and give the same pixels.
"""

import io

import cv2
import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

cv2.setNumThreads(0)  # the pipeline already decodes each image in its own thread or process

MAX_PIXELS = 178_956_970  # above this, Pillow too reports a decompression bomb
# Of a JPEG. An image of a single colour has 64 pixels per byte, a photograph 2 to 20.
MAX_PIXELS_PER_BYTE = 1000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

# reduction -> OpenCV's flag. Their names say grey or BGR, but with COLOR_RGB the result is RGB.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_TAIL = 64  # bytes of padding allowed after a JPEG's end marker


class ImageError(ValueError):
    """An image cannot be decoded; the message says why."""


def decode(
    image: bytes | np.ndarray,
    channels: int = 3,
    reduction: int = 1,
    header: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Returns an image as uint8 [H, W, channels].

    Encoded images are converted to grey or RGB as `channels` requires, from grey, RGB, CMYK and
    palettes. Alpha is dropped, 16 bits become 8, and the EXIF orientation is ignored, as
    torchvision and timm do. Arrays are only checked, and repeated from 1 channel to `channels`.

    Args:
      image: an encoded image, or uint8 [H, W], [H, W, 1] or [H, W, channels].
      channels: 3 (RGB) or 1 (grey).
      reduction: 1, 2, 4 or 8; the decoder may divide height and width by it if that saves time.
      header: result of `jpeg_header(image)`, if already known.

    Raises:
      ImageError: the data are not an image or are damaged, the image has more than 179 million
        pixels, or the array has another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, channels)
    header = header or jpeg_header(image)
    if header:
        _check_size(*header[:2], len(image))
        # Without its end marker the file is truncated, which only Pillow reports.
        complete = image.rfind(b"\xff\xd9", -_TAIL) >= 0
        if complete and channels == 3 and header[2] in (1, 3):
            decoded = _fast_jpeg(image, reduction)
            if decoded is not None:
                return decoded
    return _pillow(image, channels)


def dimensions(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of an image; only the header of an encoded image is read.

    Args:
      image: an encoded image, or an array [H, W, ...].

    Raises:
      ImageError: the data are not an image, or it has more than 179 million pixels.
    """
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    header = jpeg_header(image)
    if header:
        _check_size(*header[:2], len(image))
        return header[:2]
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            _check_size(picture.height, picture.width)
            return picture.height, picture.width
    except Exception as e:
        raise _as_image_error(e) from e


def jpeg_header(image: bytes) -> tuple[int, int, int] | None:
    """Returns (height, width, number of components) of a JPEG, or None for other data."""
    if image[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 < len(image):
        if image[at] != 0xFF:
            return None
        marker = image[at + 1]
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(image[at + 5 : at + 7], "big")
            width = int.from_bytes(image[at + 7 : at + 9], "big")
            return (height, width, image[at + 9]) if height and width else None
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + max(2, int.from_bytes(image[at + 2 : at + 4], "big"))
    return None


def _check_size(height: int, width: int, jpeg_bytes: int | None = None) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    if jpeg_bytes and height * width > MAX_PIXELS_PER_BYTE * jpeg_bytes:
        raise ImageError(
            f"{width} x {height} pixels cannot be in {jpeg_bytes:,} bytes: the header is damaged"
        )


def _fast_jpeg(image: bytes, reduction: int) -> np.ndarray | None:
    """Returns a JPEG as uint8 [H, W, 3], or None if the decoder refuses it."""
    if simplejpeg and reduction == 1:
        try:
            return simplejpeg.decode_jpeg(image, "RGB", fastdct=False, fastupsample=False)
        except ValueError:  # simplejpeg is stricter; the other decoders decide
            pass
    try:
        flags = _FLAGS | _REDUCED[reduction]
        return cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error:
        return None


def _from_array(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns an array [H, W], [H, W, 1] or [H, W, channels] as uint8 [H, W, channels]."""
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, channels):
        raise ImageError(
            f"the array is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, "
            f"{channels}]"
        )
    return image if image.shape[2] == channels else np.repeat(image, channels, axis=2)


def _pillow(image: bytes, channels: int) -> np.ndarray:
    """Returns an encoded image as uint8 [H, W, channels], decoded by Pillow."""
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            _check_size(picture.height, picture.width)
            if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would clip
                array = (np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(array[..., None], channels, axis=2)
            array = np.asarray(picture.convert(mode))
    except Exception as e:  # for a damaged file, Pillow raises almost any exception
        raise _as_image_error(e) from e
    return array[..., None] if channels == 1 else array


def _as_image_error(error: Exception) -> ImageError:
    """Returns an ImageError with the reason of an exception of Pillow."""
    if isinstance(error, ImageError):
        return error
    reason = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
    return ImageError(f"not a readable image: {reason}")
