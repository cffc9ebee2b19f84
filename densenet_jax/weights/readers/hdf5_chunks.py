"""Arrays that HDF5 stores in chunks, compressed or not, as h5py and h5repack write them.

Section numbers refer to "HDF5 File Format Specification, Version 3.0". Every chunk is charged to
the budget, so that neither their sizes nor their number can take more than a file of weights needs.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from densenet_jax.weights.readers.bounded_file import BoundedFile, WeightsError

MAX_CHUNKS = 20_000  # in one array
_STEP = 1024  # bytes charged for a chunk or a node of the tree, whose number would be free else
DEFLATE, SHUFFLE, CHECKSUM, LZF = 1, 2, 3, 32000  # the filters that are known
_CHECKSUM_SIZE = 4


def number(file: BoundedFile, offset: int, size: int = 8) -> int:
    """Returns the unsigned little-endian integer of `size` bytes at `offset`."""
    return int.from_bytes(file.read(offset, size), "little")


def read_chunks(
    file: BoundedFile,
    layout: BoundedFile,
    filters: BoundedFile | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    big_endian: bool,
    name: str,
) -> np.ndarray:
    """Returns an array in chunks.

    Args:
      file: the whole file.
      layout: its data layout message, version 3 (IV.A.2.i): the tree of chunks and their shape.
      filters: its filter pipeline message; None: the chunks are stored as they are.
      shape: of the array.
      dtype: its element type.
      big_endian: whether elements are stored with the most significant byte first.
      name: of the array, for error messages.

    Raises:
      WeightsError: the chunks are damaged, do not fill the array, or have unknown filters.
    """
    rank = number(layout, 2, 1) - 1
    chunk = tuple(number(layout, 11 + 4 * axis, 4) for axis in range(rank))
    size = math.prod(chunk) * dtype.itemsize
    if rank != len(shape) or not rank or not size:
        raise _damaged(file, name)
    grid = [-(-length // step) for length, step in zip(shape, chunk, strict=True)]
    if math.prod(grid) > MAX_CHUNKS:
        raise file.fail(f"it has more than {MAX_CHUNKS} chunks; save it again without chunks", name)
    file.charge(math.prod(shape) * dtype.itemsize, name)
    result = np.empty(shape, dtype)
    pipeline = [] if filters is None else _filters(file, filters, name)
    missing = set(itertools.product(*(range(count) for count in grid)))
    stored = dtype.newbyteorder(">") if big_endian else dtype
    for begin, data, mask in _chunks(file, number(layout, 3), rank, None):
        place = tuple(at // step for at, step in zip(begin, chunk, strict=True))
        aligned = all(at % step == 0 for at, step in zip(begin, chunk, strict=True))
        if place not in missing or not aligned:
            raise _damaged(file, name)
        missing.remove(place)
        file.charge(size + _STEP, name)
        active = [known for i, known in enumerate(pipeline) if not mask >> i & 1]
        content = _unfiltered(file, data, active, size, dtype.itemsize, name)
        block = np.frombuffer(content, stored).reshape(chunk)
        inside = tuple(
            slice(min(step, length - at))
            for at, step, length in zip(begin, chunk, shape, strict=True)
        )
        result[tuple(slice(at, at + step) for at, step in zip(begin, chunk, strict=True))] = block[
            inside
        ]
    if missing:
        raise file.fail(f"{len(missing)} of its chunks are missing; save it again", name)
    return result


def _damaged(file: BoundedFile, name: str) -> WeightsError:
    return file.fail("its chunks are damaged; download or save the file again", name)


def _chunks(
    file: BoundedFile, address: int, rank: int, level: int | None
) -> Iterator[tuple[tuple[int, ...], BoundedFile, int]]:
    """Yields (first index, stored bytes, mask of skipped filters) of each chunk (III.A.1)."""
    file.charge(_STEP)
    head = file.part(address, 24)
    depth = number(head, 5, 1)
    if head.read(0, 5) != b"TREE\1" or depth > 8 or (level is not None and depth != level):
        raise file.fail("its tree of chunks is damaged; download or save the file again")
    key = 8 + 8 * (rank + 1)
    count = number(head, 6, 2)
    entries = file.part(address + 24, count * (key + 8))
    for at in range(0, entries.size, key + 8):
        child = number(entries, at + key)
        if depth:
            yield from _chunks(file, child, rank, depth - 1)
            continue
        begin = tuple(number(entries, at + 8 + 8 * axis) for axis in range(rank))
        yield begin, file.part(child, number(entries, at, 4)), number(entries, at + 4, 4)


def _filters(file: BoundedFile, message: BoundedFile, name: str) -> list[int]:
    """Returns the filters in a filter pipeline message, in the order of writing (IV.A.2.l)."""
    version, count = message.read(0, 2)
    position, found = (8 if version == 1 else 2), []
    for _ in range(count):
        kind = number(message, position, 2)
        if kind not in (DEFLATE, SHUFFLE, CHECKSUM, LZF):
            raise file.fail(
                f"it is compressed with a filter that is not read (number {kind}); "
                "write the file again without compression, or with gzip",
                name,
            )
        has_name = version == 1 or kind >= 256
        length = number(message, position + 2, 2) if has_name else 0
        position += 4 if has_name else 2
        values = number(message, position + 2, 2)
        padding = 4 * (values % 2) if version == 1 else 0
        position += 4 + -(-length // 8) * 8 + 4 * values + padding
        found.append(kind)
    return found


def _unfiltered(
    file: BoundedFile, data: BoundedFile, filters: list[int], size: int, width: int, name: str
) -> bytes:
    """Returns the `size` bytes of a chunk, whose elements have `width` bytes."""
    room = size + _CHECKSUM_SIZE * filters.count(CHECKSUM)
    if data.size > 2 * room + 1024:
        raise _damaged(file, name)
    content = data.read(0, data.size)
    undo: dict[int, Callable[[bytes], bytes]] = {
        DEFLATE: lambda text: _inflated(text, room),
        LZF: lambda text: _unpacked(text, room),
        SHUFFLE: lambda text: np.frombuffer(text, np.uint8).reshape(width, -1).T.tobytes(),
        CHECKSUM: lambda text: text[:-_CHECKSUM_SIZE],
    }
    try:
        for kind in reversed(filters):
            content = undo[kind](content)
    except (zlib.error, ValueError, IndexError):
        content = b""
    if len(content) != size:
        raise _damaged(file, name)
    return content


def _inflated(text: bytes, room: int) -> bytes:
    """Returns decompressed bytes, at most one more than `room`."""
    return zlib.decompressobj().decompress(text, room + 1)


def _unpacked(text: bytes, room: int) -> bytes:
    """Returns the bytes that LibLZF compressed, as h5py's `compression="lzf"` does.

    A control byte below 32 begins a run of bytes; another one repeats bytes that were there
    before. If the result exceeds `room`, what follows is left out.
    """
    result = bytearray()
    at = 0
    while at < len(text) and len(result) <= room:
        control = text[at]
        at += 1
        if control < 32:
            result += text[at : at + control + 1]
            at += control + 1
            continue
        length = (control >> 5) + 2
        if length == 9:
            length += text[at]
            at += 1
        back = ((control & 31) << 8) + text[at] + 1
        at += 1
        if back > len(result):
            raise ValueError
        begin = len(result) - back
        repeated = result[begin : begin + length]
        result += (repeated * -(-length // len(repeated)))[:length]
    return bytes(result)
