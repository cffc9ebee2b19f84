"""TFRecord files, read without TensorFlow.

A record is: uint64 length, uint32 masked CRC32C of the length, the data, uint32 masked CRC32C of
the data; little-endian.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

from densenet_jax.data.sources.source import DataError

_POLYNOMIAL = 0x82F63B78  # of CRC32C, reflected


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    """Returns TFRecord's checksum of a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a file; their lengths are checked, never more than the file is read.

    Raises:
      DataError: the file is no TFRecord, or is damaged or cut off.
    """
    left = os.path.getsize(path)
    with path.open("rb") as file:
        while left:
            header = file.read(12)
            if len(header) < 12:
                raise DataError(f"{path} is cut off inside a record's header.")
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                raise DataError(f"{path} is not a TFRecord file, or is damaged.")
            left -= 12 + length + 4
            if left < 0:
                raise DataError(f"{path} is cut off: a record of {length:,} bytes is incomplete.")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
