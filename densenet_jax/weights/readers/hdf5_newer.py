"""The layout of groups that newer HDF5 versions write: object headers 2, links, fractal heaps.

Files opened with `libver="latest"`, and groups that keep the order of their members, have it.
Section numbers refer to "HDF5 File Format Specification, Version 3.0".
"""

from collections.abc import Callable, Iterator

from densenet_jax.weights.readers.bounded_file import MAX_NAME, BoundedFile, WeightsError
from densenet_jax.weights.readers.hdf5_chunks import number

LINK_INFO, LINK, ATTRIBUTE_INFO = 0x02, 0x06, 0x15
CONTINUATION = 0x10  # in every version
_UNDEFINED = 2**64 - 1  # address of what does not exist
MAX_BLOCKS = 64  # of one object header

# What a structure that is not read here raises: a function that returns the error.
Refuse = Callable[[], WeightsError]


def messages(file: BoundedFile, address: int, refuse: Refuse) -> Iterator[tuple[int, BoundedFile]]:
    """Yields the type and data of each message in an object header of version 2 (IV.A.1.b)."""
    version, flags = file.read(address + 4, 2)
    if version != 2:
        raise refuse()
    start = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    blocks = [file.part(start + width, number(file, start, width))]
    head = 6 if flags & 4 else 4
    for block in blocks:
        if len(blocks) > MAX_BLOCKS:
            raise refuse()
        position = 0
        while position + head <= block.size:
            kind, size = number(block, position, 1), number(block, position + 1, 2)
            message = block.part(position + head, size)
            if kind == CONTINUATION:
                at, length = number(message, 0), number(message, 8)
                if length < 8 or file.read(at, 4) != b"OCHK":
                    raise refuse()
                blocks.append(file.part(at + 4, length - 8))  # between signature and checksum
            elif block.read(position + 3, 1)[0] & 2:  # shared between objects
                raise refuse()
            else:
                yield kind, message
            position += head + size


def link(message: BoundedFile, refuse: Refuse) -> tuple[bytes, int]:
    """Returns the name and the address in a link message (IV.A.2.g)."""
    version, flags = message.read(0, 2)
    position = 2
    if version != 1 or (flags & 8 and message.read(position, 1) != b"\0"):  # to a name or a file
        raise refuse()
    position += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 0x10)
    width = 1 << (flags & 3)
    size = number(message, position, width)
    if size > MAX_NAME:
        raise refuse()
    name = message.read(position + width, size)
    return name, number(message, position + width + size)


def stored(
    file: BoundedFile, kind: int, info: BoundedFile, refuse: Refuse
) -> Iterator[BoundedFile]:
    """Yields the links or attributes that are stored outside of an object's header.

    Args:
      file: the whole file.
      kind: `LINK_INFO` (IV.A.2.c) or `ATTRIBUTE_INFO` (IV.A.2.v).
      info: the message of this type, which says where they are.
      refuse: see `Refuse`.
    """
    ordered = info.read(1, 1)[0] & 1
    position = 2 + (8 if kind == LINK_INFO else 2) * ordered
    heap, tree = number(info, position), number(info, position + 8)
    if heap == _UNDEFINED:
        return
    find = _heap(file, heap, refuse)
    for record in _records(file, tree, refuse):
        yield find(record)


def _records(file: BoundedFile, address: int, refuse: Refuse) -> Iterator[BoundedFile]:
    """Yields the heap identifiers in a tree of links or attributes by name (III.A.2)."""
    if file.read(address, 5) != b"BTHD\0":
        raise refuse()
    kind, depth = number(file, address + 5, 1), number(file, address + 12, 2)
    if kind not in (5, 8) or depth > 1:  # over 1,000 members
        raise refuse()
    # Links: a hash, then the identifier; attributes: the identifier first.
    start, length = (4, 7) if kind == 5 else (0, 8)
    node_size, size = number(file, address + 6, 4), number(file, address + 10, 2)
    if size < start + length or node_size < 10 + size:
        raise refuse()
    width = (((node_size - 10) // size).bit_length() - 1) // 8 + 1  # of a count of a leaf's records
    nodes = [(number(file, address + 16), number(file, address + 24, 2), depth)]
    for at, count, level in nodes:
        if file.read(at, 4) != (b"BTIN" if level else b"BTLF"):
            raise refuse()
        records = file.part(at + 6, count * size)
        for i in range(count):
            yield records.part(i * size + start, length)
        for i in range(count + 1 if level else 0):
            child = at + 6 + count * size + i * (8 + width)
            nodes.append((number(file, child), number(file, child + 8, width), 0))


def _heap(file: BoundedFile, address: int, refuse: Refuse) -> Callable[[BoundedFile], BoundedFile]:
    """Returns the function from an identifier to its object in a fractal heap (III.G)."""
    if file.read(address, 5) != b"FRHP\0" or number(file, address + 7, 2):  # with filters
        raise refuse()
    width, start = number(file, address + 110, 2), number(file, address + 112)
    largest, bits = number(file, address + 120), number(file, address + 128, 2)
    root, rows = number(file, address + 132), number(file, address + 140, 2)
    if not (0 < width <= 1024 and 0 < start <= largest <= 1 << 32 and 8 <= bits <= 64):
        raise refuse()
    octets = -(-bits // 8)

    def find(identifier: BoundedFile) -> BoundedFile:
        if identifier.read(0, 1)[0] >> 4:  # an object that is tiny or huge
            raise refuse()
        offset = number(identifier, 1, octets)
        length = number(identifier, 1 + octets, identifier.size - 1 - octets)
        if not rows:
            return file.part(root + offset, length)
        # Blocks of one row have one size, which doubles from the second row on.
        row = (offset // (width * start)).bit_length()
        size = start << max(0, row - 1)
        column = (offset - (width * size if row else 0)) // size
        if row >= rows or size > largest or file.read(root, 4) != b"FHIB":
            raise refuse()
        block = number(file, root + 13 + octets + 8 * (row * width + column))
        return file.part(block + offset % size, length)

    return find
