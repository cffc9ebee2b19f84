"""JPEG: checks of the header, the fast decoders, and the removal of metadata before Pillow reads.

OpenCV decodes at a reduced size and simplejpeg, which is about 6 % faster, at full size. Both
contain libjpeg-turbo, as Pillow does, and give the same pixels.
"""

import re
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg

from densenet_jax.data.reading.limits import MAX_PIXELS_PER_JPEG_BYTE, ImageError, check_size

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN = b"\xff\xda"
MAX_SEGMENTS = 4096
FILL_PAIRS = 1 << 17  # of 0xFF, which Pillow skips one by one
# Each scan of a progressive JPEG passes over all pixels, at about 1e9 pixels a second.
SCAN_PIXELS = 3 * 10**9
ANY_SCANS = 10**5  # a scan of a few pixels takes some 10 us
USUAL_MEMORY = 14  # bytes for each pixel in Pillow: the picture, a converted copy, and two arrays
SCAN_BYTES = 10  # of the shortest scan

# reduction -> OpenCV's flag. Their names say grey or BGR, but with COLOR_RGB the result is RGB.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_COMPONENTS = {"Gray": 1, "YCbCr": 3, "RGB": 3, "CMYK": 4, "YCCK": 4}
_TAIL = 64  # bytes of padding allowed after the end marker
_MARKER = re.compile(rb"\xff+([^\xff])", re.DOTALL)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # all but JFIF, and Adobe's, which tells the colours


def header(image: bytes) -> tuple[int, int, int] | None:
    """Returns (height, width, number of components) of a JPEG, or None for other data.

    libjpeg-turbo reads it: a parser of our own could be led to another size than the decoder's.
    """
    if image[:2] != START:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:  # also for unusual samplings of the colours, which Pillow can read
        return None
    components = _COMPONENTS.get(colours)
    return (height, width, components) if components else None


def decode(image: bytes, head: tuple[int, int, int], reduction: int) -> np.ndarray | None:
    """Returns a JPEG as uint8 [H, W, 3], or None if Pillow has to decode it.

    Args:
      image: the file.
      head: its `header`.
      reduction: 1, 2, 4 or 8, by which height and width are divided.

    Raises:
      ImageError: it has too many pixels, or too many scans.
    """
    check(image, head, reduction)
    # Without its end marker the file is truncated, which only Pillow reports.
    if head[2] == 4 or image.rfind(END, -_TAIL) < 0:
        return None
    if reduction == 1:
        try:
            return simplejpeg.decode_jpeg(image, "RGB", fastdct=False, fastupsample=False)
        except ValueError:  # simplejpeg is stricter; the other decoders decide
            pass
    try:
        return cv2.imdecode(np.frombuffer(image, np.uint8), _FLAGS | _REDUCED[reduction])
    except cv2.error:
        return None


def check(image: bytes, head: tuple[int, int, int], reduction: int = 1) -> None:
    """Raises ImageError if a JPEG has too many pixels or scans; see `decode`."""
    height, width, components = head
    scans = check_scans(image, height * width)
    # With several scans, the coefficients of all pixels are kept.
    needed = 3 / reduction**2 if components < 4 else USUAL_MEMORY
    memory = needed + (6 if scans else 0)
    check_size(height, width, len(image), memory, MAX_PIXELS_PER_JPEG_BYTE)


def check_scans(image: bytes, pixels: int) -> bool:
    """Returns whether a JPEG may have several scans; False for a single one, and for small files.

    Raises:
      ImageError: the scans would take too long.
    """
    most = len(image) // SCAN_BYTES  # counting them would cost as much as 5 % of decoding
    if (most <= ANY_SCANS and most * pixels <= SCAN_PIXELS) or _has_one_scan(image):
        return False
    scans = image.count(SCAN)
    if scans > ANY_SCANS or scans * pixels > SCAN_PIXELS:
        raise ImageError(f"the JPEG has {scans} scans, too many for {pixels:,} pixels")
    return scans > 1


def _has_one_scan(image: bytes) -> bool:
    """Returns whether the first scan of a baseline JPEG has all of its components."""
    components = 0
    try:
        for marker, begin, _ in segments(image):
            if marker in (0xC0, 0xC1):
                components = image[begin + 9]
            if marker == 0xDA:
                return components > 0 and image[begin + 4] == components
    except (ImageError, IndexError):
        pass
    return False


def segments(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, begin, end) of each segment up to the first scan, whose end is the file's.

    Raises:
      ImageError: the file has no scan, is damaged before it, or has thousands of segments.
    """
    at = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.match(image, at)
        if not found:
            break
        marker, begin, at = found[1][0], found.end() - 2, found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == 0xDA:
            yield marker, begin, len(image)
            return
        at += max(2, int.from_bytes(image[at : at + 2], "big"))
        yield marker, begin, at
    raise ImageError("not a readable image: the JPEG is damaged before its first scan")


def without_metadata(image: bytes) -> bytes:
    """Returns a JPEG without fill bytes, comments and metadata, on which Pillow may spend minutes.

    Raises:
      ImageError: see `segments`.
    """
    parts = [image[a:b] for marker, a, b in segments(image) if marker not in _METADATA]
    return START + b"".join(parts)


def exif(image: bytes) -> bytes:
    """Returns the EXIF block of a JPEG, a TIFF file; b"" if there is none."""
    try:
        for marker, begin, end in segments(image):
            if marker == 0xE1 and image[begin + 4 : begin + 10] == b"Exif\0\0":
                return image[begin + 10 : end]
    except ImageError:
        pass
    return b""


def check_fill(image: bytes) -> None:
    """Raises ImageError for a JPEG with so many fill bytes that Pillow would take seconds."""
    if image.count(b"\xff\xff") > FILL_PAIRS:
        raise ImageError("not a readable image: the JPEG is mostly fill bytes")
