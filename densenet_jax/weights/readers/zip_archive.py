"""A reader for zip archives, the container of PyTorch's, Keras's and NumPy's files.

The standard library's reader allocates memory for as many entries as an archive claims to have, and
lets entries share bytes, as zip bombs do. This reader refuses both.
"""

import io
import struct
import zlib
from dataclasses import dataclass

from densenet_jax.weights.readers.bounded_file import BoundedFile, WeightsError

MAX_DIRECTORY = 4 << 20  # bytes of the table of contents; 0.2 MB in a training checkpoint
STORED, DEFLATED = 0, 8
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive, as the table of contents describes it.

    Attributes:
      archive: the whole archive.
      name: path in the archive.
      method: `STORED` or `DEFLATED`.
      crc: CRC-32 of the contents; 0: not computed.
      stored_size: bytes in the archive.
      size: bytes of the contents after decompression.
      header: offset of the member's local header.
      begin: offset of the member's data.
    """

    archive: BoundedFile
    name: str
    method: int
    crc: int
    stored_size: int
    size: int
    header: int
    begin: int

    def open(self) -> BoundedFile:
        """Returns the contents, decompressed if needed.

        Raises:
          WeightsError: the contents are damaged (wrong size or CRC) or exceed the memory budget.
        """
        archive = self.archive
        data = archive.part(self.begin, self.stored_size)
        if self.method == DEFLATED:
            archive.charge(self.size)
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = inflate.decompress(data.read(0, self.stored_size), self.size + 1)
            except zlib.error:
                content = b""
            if len(content) != self.size:
                raise self._damaged()
            data = BoundedFile(archive.path, io.BytesIO(content), 0, self.size, archive.budget)
        crc = 0
        for offset in range(0, data.size, _CHUNK):
            crc = zlib.crc32(data.read(offset, min(_CHUNK, data.size - offset)), crc)
        if self.crc not in (crc, 0):  # PyTorch writes 0 when it skips the CRC to save time.
            raise self._damaged()
        return data

    def _damaged(self) -> WeightsError:
        return self.archive.fail(
            f"its member {self.name[:80]!r} is damaged; download or save the file again"
        )


def members(file: BoundedFile) -> dict[str, Member]:
    """Returns {name: member} of all files in the archive.

    Raises:
      WeightsError: the archive is damaged or encrypted, a member is compressed by another method
        than deflate, members overlap or repeat a name, or a name leads out of the archive's folder.
    """
    begin, size = _directory(file)
    table = file.read(begin, size)
    entries: dict[str, Member] = {}
    position = 0
    while position < size:
        if table[position : position + 4] != b"PK\1\2" or position + 46 > size:
            raise _damaged_table(file)
        flags, method, crc, stored, full, *lengths, header = struct.unpack_from(
            "<HH4x3L3H8xL", table, position + 8
        )
        name_end = position + 46 + lengths[0]
        position = name_end + lengths[1] + lengths[2]
        if position > size:
            raise _damaged_table(file)
        extra = table[name_end : name_end + lengths[1]]
        full, stored, header = _zip64(file, extra, [full, stored, header])
        name = table[name_end - lengths[0] : name_end].decode("utf-8", "replace")
        if name.endswith("/"):
            continue
        if name in entries or name.startswith("/") or ".." in name.split("/"):
            raise file.fail(
                f"its member {name[:80]!r} is repeated or has an illegal name; save the file again"
            )
        unpackable = method == DEFLATED or (method == STORED and stored == full)
        if flags & 1 or not unpackable:
            raise file.fail(
                f"its member {name[:80]!r} is encrypted, damaged or compressed by an unsupported "
                "method; save the file again"
            )
        local = file.read(header, 30)
        if local[:4] != b"PK\3\4":
            raise file.fail(
                f"its member {name[:80]!r} is not where the table of contents says; "
                "the file is damaged, so download or save it again"
            )
        data = header + 30 + sum(struct.unpack_from("<HH", local, 26))
        entries[name] = Member(file, name, method, crc, stored, full, header, data)
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end:
            raise file.fail(
                f"its member {entry.name[:80]!r} overlaps another one, as in a zip bomb; "
                "delete the file"
            )
        end = entry.begin + entry.stored_size
    if end > begin:
        raise file.fail(
            "a member reaches into the table of contents; the file is damaged, so download or save "
            "it again"
        )
    return entries


def _directory(file: BoundedFile) -> tuple[int, int]:
    """Returns the offset and size of the table of contents, from the record at the end."""
    tail_begin = max(0, file.size - 65_557)
    tail = file.read(tail_begin, file.size - tail_begin)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or found + 22 > len(tail):
        raise file.fail("the end of the archive is missing; download or save the file again")
    size, begin = struct.unpack_from("<LL", tail, found + 12)
    end = tail_begin + found
    if 0xFFFFFFFF in (size, begin) and tail[max(0, found - 20) :][:4] == b"PK\6\7":
        (end,) = struct.unpack_from("<Q", tail, found - 12)
        record = file.read(end, 56)
        size, begin = struct.unpack_from("<QQ", record, 40)
    if size > MAX_DIRECTORY or begin + size > end:
        raise file.fail(
            "its table of contents is too large or damaged; download or save the file again"
        )
    return begin, size


def _zip64(file: BoundedFile, extra: bytes, fields: list[int]) -> list[int]:
    """Returns the fields [size, stored size, offset], with 64-bit values from the extra data.

    The table of contents holds 0xFFFFFFFF for values that are too large for 32 bits.
    """
    missing = fields.count(0xFFFFFFFF)
    position = 0
    while missing and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1 and length >= 8 * missing and position + 4 + 8 * missing <= len(extra):
            values = iter(struct.unpack_from(f"<{missing}Q", extra, position + 4))
            return [next(values) if field == 0xFFFFFFFF else field for field in fields]
        position += 4 + length
    if missing:
        raise _damaged_table(file)
    return fields


def _damaged_table(file: BoundedFile) -> WeightsError:
    return file.fail("its table of contents is damaged; download or save the file again")
