"""TIFF: its header, read with bounds, and the decoder that keeps all bits of its pixels.

Pillow decodes images of 8 bits, OpenCV grey, RGB and RGBA images of more, and tifffile (an extra)
all others: many bands, planes after one another, rare compressions.
"""

import dataclasses
import io
import logging
import struct
from collections.abc import Callable

import cv2
import numpy as np

from densenet_jax.data.reading.limits import MAX_CHANNELS, ImageError, check_memory, check_size

MAX_TAGS = 1024
ORIENTATION = 274
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
# Width, height, bits, photometric, orientation, samples, rows, planes, tiles, format of samples.
_READ = {256, 257, 258, 262, ORIENTATION, 277, 278, 284, 322, 323, 339}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_KINDS = {1: "u", 2: "i", 3: "f"}  # of SampleFormat
_log = logging.getLogger(__name__)
_noted = False


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first page of a TIFF says of itself.

    Attributes:
      tags: {number: its whole numbers}; tags of other types are left out.
      more: whether the file has further pages.
      turned: position of the orientation's number in the file; 0: it has none.
    """

    tags: dict[int, tuple[int, ...]]
    more: bool
    turned: int

    def value(self, tag: int, default: int) -> int:
        """Returns the first number of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.value(257, 0), self.value(256, 0)

    @property
    def samples(self) -> int:
        """Number of numbers for each pixel."""
        return self.value(277, 1)

    @property
    def bits(self) -> int:
        """Number of bits of the widest sample."""
        return max(self.tags.get(258) or (1,))

    @property
    def kind(self) -> str:
        """Kind of the samples, as NumPy names it: "u", "i" or "f"."""
        return _KINDS.get(self.value(339, 1), "?")


def is_tiff(data: bytes) -> bool:
    """Returns whether data begin as a TIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def header(data: bytes) -> Header:
    """Returns the header of a TIFF's first page.

    Raises:
      ImageError: the file is damaged, or its tags claim more data than it has.
    """
    try:
        return _header(data)
    except (struct.error, IndexError) as e:
        raise ImageError("not a readable image: the TIFF is damaged") from e


def _header(data: bytes) -> Header:
    order, big = "<>"[data[0] == ord("M")], data[2] + data[3] == ord("+")
    at, offset = (8, "Q") if big else (4, "I")
    (at,) = struct.unpack_from(order + offset, data, at)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if count > MAX_TAGS:
        raise ImageError(f"not a readable image: the TIFF has {count:,} tags")
    at, step, inline = at + (8 if big else 2), 20 if big else 12, 8 if big else 4
    end = at + count * step
    tags, total, turned = {}, 0, 0
    for tag, kind, length, value in struct.iter_unpack(f"{order}HH{offset * 2}", data[at:end]):
        size = _SIZES.get(kind, 1) * length
        total += size
        if tag in _READ and kind in _INTEGERS and length <= MAX_CHANNELS:
            where = at + step - inline if size <= inline else value
            tags[tag] = struct.unpack_from(f"{order}{length}{_INTEGERS[kind]}", data, where)
            turned = where if tag == ORIENTATION and kind == 3 else turned
        at += step
    if total > len(data):  # overlapping values would be read again and again
        raise ImageError("not a readable image: the TIFF's tags are longer than the file")
    (following,) = struct.unpack_from(order + offset, data, end)
    return Header(tags, following != 0, turned)


def check(data: bytes) -> Header:
    """Returns the header of a TIFF after checking all sizes that its decoders allocate.

    Raises:
      ImageError: it is damaged, or claims too much.
    """
    found = header(data)
    height, width = found.size
    if not (1 <= found.samples <= MAX_CHANNELS and found.kind in "uif" and found.bits <= 64):
        raise ImageError(
            f"not a readable image: the TIFF has {found.samples} samples of {found.bits} bits"
        )
    sample = 4 * found.samples if found.bits <= 8 else 2 * found.samples * -(-found.bits // 8)
    check_size(height, width, len(data), 8 + sample)  # 8: a channel, to be resized
    # A strip or tile is decoded as a whole, even if it is larger than the image.
    rows, columns = found.value(323, 0), found.value(322, 0)
    rows, columns = rows or min(found.value(278, height), height), columns or width
    check_memory(rows * columns * sample, len(data), f"tiles of {columns} x {rows} pixels")
    return found


def decode(data: bytes, pillow: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """Returns the first page of a TIFF as [H, W, C] in the type of its numbers.

    Args:
      data: the file.
      pillow: decodes a file with 8 bits as uint8.

    Raises:
      ImageError: it is damaged, too large, or needs a package that is not installed.
    """
    global _noted
    found = check(data)
    if found.more and not _noted:
        _noted = True
        _log.warning("A TIFF has several pages: the first page of each file is used.")
    together, white_is_zero = found.value(284, 1) == 1, found.value(262, 1) == 0
    simple = found.samples in (1, 3, 4) and (together or found.samples == 1)
    image = None
    if found.bits <= 8 and found.kind == "u" and found.samples in (1, 3, 4):
        return pillow(_as_stored(data, found))
    if simple and found.bits in (16, 32, 64) and found.value(262, 1) in (0, 1, 2):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        image = _tifffile(data, found)
    elif image.ndim == 3:
        code = cv2.COLOR_BGR2RGB if found.samples == 3 else cv2.COLOR_BGRA2RGBA
        image = (
            cv2.cvtColor(image, code)
            if image.dtype.char in "Hf"
            else (image[..., [2, 1, 0, 3][: found.samples]])
        )
    image = image[..., None] if image.ndim == 2 else image
    if image.shape != (*found.size, found.samples):
        raise ImageError(f"not a readable image: the TIFF's pixels are {list(image.shape)}")
    return np.invert(image) if white_is_zero and image.dtype.kind == "u" else image


def _as_stored(data: bytes, found: Header) -> bytes:
    """Returns a TIFF without orientation: Pillow turns images upright in this format only."""
    if found.value(ORIENTATION, 1) == 1 or not found.turned:
        return data
    upright = (1).to_bytes(2, "little" if data[:1] == b"I" else "big")
    return data[: found.turned] + upright + data[found.turned + 2 :]


def _tifffile(data: bytes, found: Header) -> np.ndarray:
    """Returns the first page, [H, W] or [H, W, C], decoded by tifffile."""
    about = f"a TIFF of {found.samples} samples of {found.bits} bits"
    try:
        import tifffile
    except ImportError:
        raise ImageError(f'{about} needs tifffile: pip install "densenet-jax[tiff]"') from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            image = np.asarray(file.pages[0].asarray())
    except Exception as e:  # for a damaged file, almost any exception
        raise ImageError(f"not a readable image: {about}: {e}") from e
    planar = found.value(284, 1) == 2 and image.ndim == 3
    return np.moveaxis(image, 0, 2) if planar else image
