"""Reads TFRecord files without TensorFlow.

A record consists of the length (uint64), the masked CRC32C of the length (uint32), the data, and
the masked CRC32C of the data (uint32). Numbers are little-endian.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

from densenet_jax.data.sources.source import DataError

_POLYNOMIAL = 0x82F63B78  # of CRC32C, reflected


def _table() -> list[int]:
    """Returns the CRC32C of each byte value."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    """Returns TFRecord's masked CRC32C of some bytes; slow, so only for a few of them."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a file.

    The checksum of each length is verified, that of the data is not. A length that exceeds the file
    is refused before anything is read.

    Raises:
      DataError: the file is not a TFRecord file, is damaged, or is cut off.
    """
    left = os.path.getsize(path)
    with path.open("rb") as file:
        while left:
            header = file.read(12)
            if len(header) < 12:
                raise DataError(
                    f"{path} is cut off inside the header of a record; prepare the data set again."
                )
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                raise DataError(
                    f"{path} is not a TFRecord file, or is damaged; prepare the data set again."
                )
            left -= 12 + length + 4
            if left < 0:
                raise DataError(
                    f"{path} is cut off: a record of {length:,} bytes is incomplete. Prepare the "
                    "data set again."
                )
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
