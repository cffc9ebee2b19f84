"""Decodes images of every format to arrays, with limits on pixels, memory and time.

Each format has a module: `jpeg`, `pillow` (PNG, WebP, BMP, GIF), `tiff`, `npy` and `dicom`.
"""

from collections.abc import Callable

import cv2
import numpy as np

from densenet_jax.data.reading import dicom, jpeg, npy, pillow, tiff
from densenet_jax.data.reading.limits import ImageError, KindError
from densenet_jax.data.sources.source import RawImage

DTYPES = ("uint8", "uint16", "float32")  # of the pixels of a data set
jpeg_header = jpeg.header


def decode(
    image: bytes | np.ndarray | RawImage,
    channels: int = 3,
    reduction: int = 1,
    header: tuple[int, int, int] | None = None,
    exif: bool = False,
) -> np.ndarray:
    """Returns an image as [H, W, channels] in the type of its numbers: uint8, uint16 or float32.

    Pictures are converted to grey or RGB as `channels` requires, from grey, RGB, CMYK and palettes;
    alpha is dropped, or the fourth of 4 channels. Arrays are only checked, and repeated from 1
    channel to 3. Signed and wide integers become float32.

    Args:
      image: an encoded image, an array [H, W] or [H, W, C], or raw, which stays a square.
      channels: 1 (grey), 3 (RGB), 4 (RGBA), or the number of channels of arrays.
      reduction: 1, 2, 4 or 8; the decoder may divide height and width by it if that saves time.
      header: result of `jpeg_header(image)`, if already known.
      exif: whether to turn the image upright as its EXIF block says; torchvision and timm do not.

    Raises:
      KindError: it has another number of channels.
      ImageError: the data are not an image or are damaged, or a limit of `limits` is exceeded.
    """
    if isinstance(image, np.ndarray):
        return _channels(_numbers(image), channels, picture=False)
    if isinstance(image, RawImage):
        return _channels(_square(image), channels, picture=True)
    pixels = _decode(image, channels, reduction, header)
    turn = _UPRIGHT.get(orientation(image)) if exif else None
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def _decode(
    image: bytes, channels: int, reduction: int, header: tuple[int, int, int] | None
) -> np.ndarray:
    """Returns an encoded image [H, W, channels]; see `decode`."""
    header = header or jpeg.header(image)
    if header and channels == 3:
        decoded = jpeg.decode(image, header, reduction)
        if decoded is not None:
            return decoded
    if npy.is_npy(image):
        return _channels(_numbers(npy.decode(image)), channels, picture=False)
    if tiff.is_tiff(image):
        array = tiff.decode(image, lambda data: pillow.decode(data, channels, ("TIFF",)))
        return _channels(_numbers(array), channels, picture=True)
    if dicom.is_dicom(image):
        return _channels(_numbers(dicom.decode(image)), channels, picture=True)
    size = pillow.png_size(image)
    if size and size[2] == 16:
        return _channels(pillow.decode_png16(image, size), channels, picture=True)
    return _channels(pillow.decode(image, channels), channels, picture=True)


def dimensions(image: bytes | np.ndarray | RawImage) -> tuple[int, int]:
    """Returns (height, width) of an image; mostly, only its header is read.

    Args:
      image: an encoded image, an array [H, W, ...], or raw.

    Raises:
      ImageError: the data are not an image, or a limit of `limits` is exceeded.
    """
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    if isinstance(image, RawImage):
        return image.height, image.width
    header = jpeg.header(image)
    if header:
        jpeg.check(image, header)
        return header[:2]
    if tiff.is_tiff(image):
        return tiff.check(image).size
    if npy.is_npy(image):
        return npy.decode(image).shape[:2]
    if dicom.is_dicom(image):
        return dicom.decode(image).shape[:2]
    with pillow.opened(image) as picture:
        return picture.height, picture.width


def is_scientific(image: bytes) -> bool:
    """Returns whether an encoded image is one that only `decode` keeps as it is: not 8 bits."""
    size = pillow.png_size(image)
    own = tiff.is_tiff(image) or npy.is_npy(image) or dicom.is_dicom(image)
    return own or (size is not None and size[2] == 16)


# What turns the pixels of an EXIF orientation upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def orientation(image: bytes) -> int:
    """Returns the EXIF orientation of an encoded image, 1 to 8; 1 (upright) if it has none."""
    try:
        if image[:2] == jpeg.START:
            block = jpeg.exif(image)
        elif tiff.is_tiff(image):
            block = image
        else:
            block = pillow.exif(image)
        return tiff.header(block).value(tiff.ORIENTATION, 1) if tiff.is_tiff(block) else 1
    except ImageError:
        return 1


def _square(image: RawImage) -> np.ndarray:
    """Returns the pixels of a raw image, uint8 [side, side, 3]."""
    shape = (image.side, image.side, 3)
    if len(image.data) != image.side**2 * 3 or min(image.height, image.width) < 1:
        raise ImageError(
            f"the record has {len(image.data):,} bytes for {image.side} x {image.side} pixels of "
            f"an image of {image.width} x {image.height}"
        )
    return np.frombuffer(image.data, np.uint8).reshape(shape)


def _numbers(array: np.ndarray) -> np.ndarray:
    """Returns an array [H, W] or [H, W, C] as uint8, uint16 or float32 [H, W, C]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.kind not in "uif" or not array.size:
        raise ImageError(
            f"the array is {array.dtype} {list(array.shape)}; it must be numbers [height, width, "
            "channels]"
        )
    if array.dtype.char in "BH":  # uint8 and uint16
        return array if array.dtype.isnative else array.astype(np.uint16)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ImageError("the image has values that are not finite")
    return array


def _channels(array: np.ndarray, channels: int, picture: bool) -> np.ndarray:
    """Returns an image [H, W, C] with another number of channels, where that is defined.

    Args:
      array: [H, W, C].
      channels: the number to return.
      picture: whether the channels are known to be grey, RGB or RGBA.

    Raises:
      KindError: it is not defined.
    """
    have = array.shape[2]
    if have == channels:
        return array
    if have == 1 and channels == 3:
        return (
            np.broadcast_to(array, (*array.shape[:2], 3))
            if array.dtype != np.uint8
            else (np.repeat(array, 3, axis=2))
        )
    if picture and have in (3, 4) and channels in (1, 3):
        colours = array[..., :3]
        return colours if channels == 3 else _grey(colours)
    raise KindError(f"it has {have} channels instead of {channels}", have)


def _grey(colours: np.ndarray) -> np.ndarray:
    """Returns the luma [H, W, 1] of an image [H, W, 3]."""
    return cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_RGB2GRAY)[..., None]
