"""Limits of an image's size, memory and time, which are checked before anything is allocated.

Files are not trusted: one of 6 KB can contain a picture of 700 MB. With these limits no file of at
most 10 MB takes more than 600 MB of memory or some 5 seconds of a core.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

MAX_PIXELS = 178_956_970  # above this, Pillow too reports a decompression bomb
MAX_FILE_BYTES = 4 * MAX_PIXELS  # enough for uncompressed pixels
MAX_CHANNELS = 1024
# A photograph has 2 to 20 pixels per byte, a JPEG of a single colour 64; in a PNG of black and
# white a byte can stand for 8,256.
MAX_PIXELS_PER_BYTE = 8300
MAX_PIXELS_PER_JPEG_BYTE = 1000
ANY_FILE = 1 << 22  # this many pixels may be in a file of any length: a WebP of one colour is tiny
# Memory while decoding: so much for a small file, and for a large one a multiple of its own size.
MEMORY = 550_000_000
MEMORY_PER_BYTE = 50
SMALL = 1 << 25  # bytes: images that need less memory do not wait for others
TRIMMED = 1 << 27  # bytes: after an image that needed more, freed memory returns to the system
TOTAL = 1 << 29  # bytes: images that are decoded at the same time need at most this together


class ImageError(ValueError):
    """An image cannot be decoded; the message says why."""


class KindError(ImageError):
    """An image has other channels, or numbers of another type, than the data set or the model.

    Attributes:
      channels: that the image has, if the error is about them; otherwise 0.
    """

    def __init__(self, message: str, channels: int = 0):
        super().__init__(message)
        self.channels = channels


def check_size(
    height: int,
    width: int,
    file_bytes: int,
    bytes_per_pixel: float,
    pixels_per_byte: int = MAX_PIXELS_PER_BYTE,
) -> None:
    """Checks the size that a header claims, and waits until there is memory for the image.

    Args:
      height, width: in pixels.
      file_bytes: length of the encoded image.
      bytes_per_pixel: memory that decoding needs.
      pixels_per_byte: largest number of pixels for each byte of a file.

    Raises:
      ImageError: it is not positive, or above a limit.
    """
    pixels = height * width
    if height < 1 or width < 1:
        raise ImageError(f"not a readable image: it has {width} x {height} pixels")
    if pixels > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    if pixels > max(ANY_FILE, pixels_per_byte * file_bytes):
        raise ImageError(
            f"{width} x {height} pixels cannot be in {file_bytes:,} bytes: the header is damaged"
        )
    check_memory(pixels * bytes_per_pixel, file_bytes, f"{width} x {height} pixels")


def check_memory(needed: float, file_bytes: int, what: str) -> None:
    """Waits until there is memory for decoding an image, see `reading`.

    Args:
      needed: bytes of memory.
      file_bytes: length of the encoded image.
      what: describes the image.

    Raises:
      ImageError: it needs more than a file of this length may.
    """
    allowed = max(MEMORY, MEMORY_PER_BYTE * file_bytes)
    if needed > allowed:
        raise ImageError(
            f"{what} need {needed / 1e6:,.0f} MB to decode, more than the {allowed / 1e6:,.0f} MB "
            f"that a file of {file_bytes:,} bytes may take; store a smaller image"
        )
    if needed > SMALL:
        _take(int(needed))


# glibc keeps what a thread has freed for that thread: eight readers would hold eight images.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
_state = threading.local()  # .held: bytes taken by the image that this thread is reading, if any
_used = 0
_changed = threading.Condition()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A context in which one image is decoded and cropped; its memory counts until the end."""
    _state.held = 0
    try:
        yield
    finally:
        held, _state.held = _state.held, None
        if held:
            _give_back(held)


def _take(needed: int) -> None:
    """Waits until the images that are read have left enough memory, in a `reading` context."""
    global _used
    if getattr(_state, "held", None) is None:
        return
    if _state.held:  # an estimate made before; nobody may wait while holding memory
        _give_back(_state.held)
        _state.held = 0
    with _changed:
        _changed.wait_for(lambda: not _used or _used + needed <= TOTAL)
        _used += needed
    _state.held = needed


def _give_back(held: int) -> None:
    global _used
    if held > TRIMMED and _trim is not None:
        _trim(0)
    with _changed:
        _used -= held
        _changed.notify_all()
