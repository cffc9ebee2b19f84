"""PNG, WebP, BMP and GIF, and JPEGs that the fast decoders refuse; PNG of 16 bits by OpenCV."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from densenet_jax.data.reading import jpeg
from densenet_jax.data.reading.limits import ImageError, check_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
WEBP_MEMORY = 23  # bytes for each pixel: the decoder has two canvases of its own
RLE_BYTES = 1 << 21  # of a run-length encoded BMP, which Pillow decodes in Python
MAX_CHUNKS = 1 << 17  # of a PNG of 16 bits
PNG = b"\x89PNG\r\n\x1a\n"

# Pillow warns of images above half its limit, and of damaged metadata. Our limits are in `limits`,
# and metadata are not used.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@contextlib.contextmanager
def opened(image: bytes, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Opens an encoded image with Pillow and checks its size; nothing is decoded yet.

    Raises:
      ImageError: it is not an image of these formats, is damaged, or too large.
    """
    if image[:2] == jpeg.START:
        jpeg.check_fill(image)
        image = jpeg.without_metadata(image)
    try:
        with Image.open(io.BytesIO(image), formats=formats) as picture:
            memory = WEBP_MEMORY if picture.format == "WEBP" else jpeg.USUAL_MEMORY
            if picture.format == "JPEG":
                memory += 6 if jpeg.check_scans(image, picture.height * picture.width) else 0
            if picture.format != "TIFF":  # whose own check comes before
                check_size(picture.height, picture.width, len(image), memory)
            if picture.tile and picture.tile[0][0] == "bmp_rle" and len(image) > RLE_BYTES:
                raise ImageError("a run-length encoded BMP of this length is not read")
            yield picture
    except ImageError:
        raise
    except Exception as e:  # for a damaged file, Pillow raises almost any exception
        reason = str(e).split(" <_io.BytesIO")[0] or type(e).__name__
        raise ImageError(f"not a readable image: {reason}") from e


def decode(image: bytes, channels: int, formats: tuple[str, ...] = FORMATS) -> np.ndarray:
    """Returns an encoded image as uint8 [H, W, C], converted to `channels` as Pillow does.

    C is 1, 3, or for `channels` of 4 or more that of the picture.

    Args:
      image: the file.
      channels: 1: grey; 3: RGB; 4: with alpha, if the picture has it.
      formats: the formats that it may have.

    Raises:
      ImageError: see `opened`.
    """
    with opened(image, formats) as picture:
        if channels in (1, 3):
            mode = "L" if channels == 1 else "RGB"
        elif "transparency" in picture.info or picture.mode in ("PA", "LA", "RGBA"):
            mode = "RGBA"
        else:
            mode = "L" if picture.mode in ("1", "L") else "RGB"
        array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return array[..., None] if array.ndim == 2 else array


def exif(image: bytes) -> bytes:
    """Returns the EXIF block of a PNG or WebP file, a TIFF file; b"" if there is none."""
    if image[:8] == PNG:
        at = image.find(b"eXIf")
        begin, length = at + 4, int.from_bytes(image[at - 4 : at], "big")
    else:
        at = image.find(b"EXIF")
        begin, length = at + 8, int.from_bytes(image[at + 4 : at + 8], "little")
    return image[begin : begin + length].removeprefix(b"Exif\0\0") if at >= 4 else b""


def png_size(image: bytes) -> tuple[int, int, int, int] | None:
    """Returns (height, width, bits, kind of colours) of a PNG; None for other data."""
    if image[:8] != PNG or image[12:16] != b"IHDR" or len(image) < 26:
        return None
    width, height, bits, colours = struct.unpack_from(">IIBB", image, 16)
    return height, width, bits, colours


def _pixels_only(image: bytes) -> bytes:
    """Returns a PNG without metadata and further frames, whose chunks lie within the file.

    OpenCV allocates a chunk, and the frames of an animation, before it reads them.
    """
    parts, at = [PNG], len(PNG)
    for _ in range(MAX_CHUNKS):
        kind, end = image[at + 4 : at + 8], at + 12 + int.from_bytes(image[at : at + 4], "big")
        if end > len(image) or not kind:
            break
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(image[at:end])
        if kind == b"IEND":
            return b"".join(parts)
        at = end
    raise ImageError("not a readable image: the PNG is damaged or cut off")


def decode_png16(image: bytes, size: tuple[int, int, int, int]) -> np.ndarray:
    """Returns a PNG of 16 bits as uint16 [H, W, 1, 3 or 4].

    Pillow would reduce its colours to 8 bits.

    Args:
      image: the file.
      size: its `png_size`.

    Raises:
      ImageError: it is damaged or too large.
    """
    height, width, _, colours = size
    check_size(height, width, len(image), 20)
    array = cv2.imdecode(np.frombuffer(_pixels_only(image), np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.shape[:2] != (height, width):
        raise ImageError("not a readable image: the PNG is damaged")
    array = array[..., None] if array.ndim == 2 else array
    if colours in (0, 4):  # grey, whose transparency OpenCV shows as three equal colours and alpha
        return array[..., :1]
    if array.shape[2] == 4 and colours == 6:
        return cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA)
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGB)
