"""A reader for the part of HDF5 that Keras writes: groups, plain arrays and text attributes.

The HDF5 library crashes or hangs on some damaged files, and links and external data can make it
open other files on the disk. Keras uses only a small part of HDF5: the oldest layout (superblock
0, symbol tables), with contiguous arrays. Programs that wrote the file again may have used chunks
or the newest layout. This module, `hdf5_chunks` and `hdf5_newer` read these and refuse everything
else.
Section numbers refer to "HDF5 File Format Specification, Version 3.0".
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from densenet_jax.weights.readers import hdf5_newer
from densenet_jax.weights.readers.bounded_file import BFLOAT16, MAX_NAME, BoundedFile, WeightsError
from densenet_jax.weights.readers.hdf5_chunks import number, read_chunks

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_STEPS = 200_000  # messages, links and heap objects; a DenseNet-201 has 10,000
MAX_DEPTH = 32  # of nested groups

# Object header messages (IV.A.2).
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
_ATTRIBUTE, _SYMBOL_TABLE = 0x0C, 0x11
# Datatype classes (IV.A.2.d).
_INTEGER, _FLOAT, _STRING, _OPAQUE, _VARIABLE_LENGTH = 0, 1, 3, 5, 9
# (bits of the exponent, bits of the mantissa) -> float type.
_FLOATS = {
    (5, 10): np.dtype("f2"),
    (8, 23): np.dtype("f4"),
    (11, 52): np.dtype("f8"),
    (8, 7): BFLOAT16,
}


@dataclass(frozen=True)
class Dataset:
    """An array in the file.

    Attributes:
      file: the whole file.
      messages: type -> data of the messages in the object header.
    """

    file: BoundedFile
    messages: dict[int, BoundedFile]

    def read(self, name: str) -> np.ndarray:
        """Returns the values of the array; error messages call it `name`."""
        if _EXTERNAL in self.messages:
            raise _unsupported(self.file, "data in other files", name)
        dtype, big_endian = _dtype(self.messages[_DATATYPE], name)
        shape = _shape(self.messages[_DATASPACE], name)
        layout = self.messages[_LAYOUT]
        version, kind = layout.read(0, 2)
        if kind > 2:
            raise _unsupported(self.file, "data in other files", name)
        if version not in (3, 4) or (version, kind) == (4, 2):
            raise _newer(self.file)
        if kind == 2 and 0 not in shape:
            filters = self.messages.get(_FILTERS)
            return read_chunks(self.file, layout, filters, shape, dtype, big_endian, name)
        if 0 in shape:
            data = layout.part(0, 0)
        elif kind == 0:
            data = layout.part(4, number(layout, 2, 2))
        else:
            data = self.file.part(number(layout, 2), number(layout, 10))
        return data.array(name, dtype, shape, big_endian=big_endian)


@dataclass(frozen=True)
class Group:
    """A folder in the file.

    Attributes:
      attributes: name -> (datatype message, value), for `Hdf5.text`.
      members: name -> group or array in this group.
    """

    attributes: dict[str, tuple[BoundedFile, BoundedFile]]
    members: dict[str, "Group | Dataset"] = field(default_factory=dict)


class Hdf5:
    """A file, read as a tree of groups and datasets that begins at `root`.

    Raises:
      WeightsError: the file is damaged, or uses features that Keras never writes: links to names
        or other files, the layout of newer versions.
    """

    def __init__(self, file: BoundedFile) -> None:
        self.file = file
        self._steps = 0
        self._seen: set[int] = set()
        self._heaps: dict[int, dict[int, BoundedFile]] = {}
        head = file.read(0, 96) if file.size >= 96 else b""
        newer = head[8:9] in (b"\2", b"\3")
        sizes, base = (head[9:11], head[12:20]) if newer else (head[13:15], head[24:32])
        known = newer or head[8:9] == b"\0"
        if head[:8] != SIGNATURE or not known or sizes != b"\x08\x08" or any(base):
            raise _newer(file)
        root = self._node(number(file, 36 if newer else 64), 0)
        if not isinstance(root, Group):
            raise file.fail("its root is not a group; download or save the file again")
        self.root = root

    def text(self, attribute: tuple[BoundedFile, BoundedFile]) -> str:
        """Returns the value of a text attribute, given as (datatype message, value)."""
        datatype, value = attribute
        kind = datatype.read(0, 1)[0] & 0x0F
        if kind == _VARIABLE_LENGTH:
            size, heap, index = (number(value, 0, 4), number(value, 4), number(value, 12, 4))
            content = self._heap(heap).get(index)
            if content is None:
                raise self._damaged()
            value = content.part(0, size)
        elif kind != _STRING:
            raise self._damaged()
        if value.size > MAX_NAME:
            raise self.file.fail(
                f"it has a name of {value.size} bytes, but the limit is {MAX_NAME}"
            )
        return value.read(0, value.size).rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _damaged(self) -> WeightsError:
        return self.file.fail("its HDF5 structure is damaged; download or save the file again")

    def _step(self) -> None:
        """Counts one part of the file, so that cyclic structures cannot be read for ever."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise self.file.fail(
                f"it has more than {MAX_STEPS} parts, too many for a file of weights"
            )

    def _node(self, address: int, depth: int) -> Group | Dataset:
        """Returns the object with the header at `address`, and everything inside it."""
        if address in self._seen or depth > MAX_DEPTH:
            raise self.file.fail("its groups contain each other or are nested too deeply")
        self._seen.add(address)
        messages: dict[int, BoundedFile] = {}
        attributes: dict[str, tuple[BoundedFile, BoundedFile]] = {}
        links = []
        for kind, message in self._messages(address):
            if kind == _ATTRIBUTE:
                name, datatype, value = self._attribute(message)
                self.file.charge(4 * len(name))
                attributes[name] = datatype, value
            elif kind == hdf5_newer.LINK:
                links.append(hdf5_newer.link(message, self._newer))
            else:
                messages[kind] = message
        if _LAYOUT in messages and _DATATYPE in messages and _DATASPACE in messages:
            return Dataset(self.file, messages)
        group = Group(attributes)
        if hdf5_newer.LINK_INFO in messages:
            for encoded, at in links:
                self._add(group, encoded, at, depth)
            return group
        if _SYMBOL_TABLE not in messages:
            raise _newer(self.file)
        table = messages[_SYMBOL_TABLE]
        heap = self._signed(number(table, 8), b"HEAP", 32)
        names = self.file.part(number(heap, 24), number(heap, 8))
        for name_offset, header, cache in self._entries(number(table, 0), None):
            if cache not in (0, 1):
                raise _unsupported(self.file, "links to other names")
            text = names.read(name_offset, min(MAX_NAME, max(0, names.size - name_offset)))
            before_end, end, _ = text.partition(b"\0")
            if not end:
                raise self._damaged()
            self._add(group, before_end, header, depth)
        return group

    def _add(self, group: Group, encoded: bytes, header: int, depth: int) -> None:
        """Adds the object with a header to a group, under its name in UTF-8."""
        name = encoded.decode("utf-8", "backslashreplace")
        if not name or name in group.members:
            raise self._damaged()
        self.file.charge(4 * len(name))
        group.members[name] = self._node(header, depth + 1)

    def _newer(self) -> WeightsError:
        return _newer(self.file)

    def _messages(self, address: int) -> Iterator[tuple[int, BoundedFile]]:
        """Yields the type and data of each message of an object (IV.A.1.a and b)."""
        if self.file.read(address, 4) == b"OHDR":
            yield from self._newer_messages(address)
            return
        if self.file.read(address, 1) != b"\1":
            raise _newer(self.file)
        blocks = [self.file.part(address + 16, number(self.file, address + 8, 4))]
        for block in blocks:
            if len(blocks) > hdf5_newer.MAX_BLOCKS:
                raise self._damaged()
            position = 0
            while position + 8 <= block.size:
                self._step()
                kind, size = number(block, position, 2), number(block, position + 2, 2)
                message = block.part(position + 8, size)
                if kind == hdf5_newer.CONTINUATION:
                    blocks.append(self.file.part(number(message, 0), number(message, 8)))
                elif block.read(position + 4, 1)[0] & 2:
                    raise _unsupported(self.file, "shared messages")
                else:
                    yield kind, message
                position += 8 + size

    def _newer_messages(self, address: int) -> Iterator[tuple[int, BoundedFile]]:
        outside = {hdf5_newer.LINK_INFO: hdf5_newer.LINK, hdf5_newer.ATTRIBUTE_INFO: _ATTRIBUTE}
        for kind, message in hdf5_newer.messages(self.file, address, self._newer):
            self._step()
            yield kind, message
            if kind not in outside:
                continue
            for other in hdf5_newer.stored(self.file, kind, message, self._newer):
                self._step()
                yield outside[kind], other

    def _attribute(self, message: BoundedFile) -> tuple[str, BoundedFile, BoundedFile]:
        """Returns the name, datatype and value of an attribute message (IV.A.2.m)."""
        version = message.read(0, 1)[0]
        position = 9 if version == 3 else 8
        parts = []
        for i in range(3):
            size = number(message, 2 + 2 * i, 2)
            parts.append(message.part(position, size))
            position += size if version > 1 else -(-size // 8) * 8
        name = parts[0].read(0, min(parts[0].size, MAX_NAME)).rstrip(b"\0")
        value = message.part(position, max(0, message.size - position))
        return name.decode("utf-8", "backslashreplace"), parts[1], value

    def _entries(self, address: int, level: int | None) -> Iterator[tuple[int, int, int]]:
        """Yields (name offset, header address, cache type) of each member of a group (III.A.1).

        Args:
          address: address of a node of the group's tree.
          level: the level that the node must have, 0 for a leaf; None for the root: any.
        """
        node = self._signed(address, b"TREE", 24)
        kind, depth = node.read(4, 2)
        if kind != 0 or depth > 8 or (level is not None and depth != level):
            raise self._damaged()
        count = number(node, 6, 2)
        children = self.file.part(address + 24, 16 * count)
        for i in range(count):
            self._step()
            child = number(children, 16 * i + 8)
            if depth:
                yield from self._entries(child, depth - 1)
                continue
            used = number(self._signed(child, b"SNOD", 8), 6, 2)
            symbols = self.file.part(child + 8, 40 * used)
            for at in range(0, symbols.size, 40):
                self._step()
                yield number(symbols, at), number(symbols, at + 8), number(symbols, at + 16, 4)

    def _heap(self, address: int) -> dict[int, BoundedFile]:
        """Returns index -> data of the objects in a global heap collection (III.E)."""
        if address not in self._heaps:
            heap = self._signed(address, b"GCOL", 16)
            heap = self.file.part(address, number(heap, 8))
            objects: dict[int, BoundedFile] = {}
            position = 16
            while position + 16 <= heap.size and (index := number(heap, position, 2)):
                self._step()
                size = number(heap, position + 8)
                objects[index] = heap.part(position + 16, size)
                position += 16 + -(-size // 8) * 8
            self._heaps[address] = objects
        return self._heaps[address]

    def _signed(self, address: int, signature: bytes, size: int) -> BoundedFile:
        """Returns `size` bytes at `address`, which must begin with `signature`."""
        part = self.file.part(address, size)
        if part.read(0, 4) != signature:
            raise self._damaged()
        return part


# Copies groups, arrays and attributes to a file in the oldest layout, which h5py writes by default.
_REWRITE = (
    "import h5py, sys; a = h5py.File(sys.argv[1]); b = h5py.File(sys.argv[2], 'w'); "
    "b.attrs.update(a.attrs); a.visititems(lambda n, x: (b.create_dataset(n, data=x[()]) "
    "if hasattr(x, 'shape') else b.require_group(n)).attrs.update(x.attrs))"
)


def _newer(file: BoundedFile) -> WeightsError:
    return file.fail(
        "it has the layout of newer HDF5 versions (libver='latest') or is damaged; rewrite it with "
        f'python -c "{_REWRITE}" FILE new.h5'
    )


def _unsupported(file: BoundedFile, what: str, tensor: str | None = None) -> WeightsError:
    return file.fail(
        f"the file is damaged or uses {what}, which Keras does not write; "
        "download it again or save it with model.save_weights",
        tensor,
    )


def _shape(space: BoundedFile, name: str) -> tuple[int, ...]:
    """Returns the shape in a dataspace message (IV.A.2.b)."""
    version, rank, _, kind = space.read(0, 4)
    if version not in (1, 2) or (version == 2 and kind == 2) or rank > 32:
        raise _unsupported(space, "an unusual shape", name)
    begin = 8 if version == 1 else 4
    return space.shape(name, [number(space, begin + 8 * i) for i in range(rank)])


def _dtype(datatype: BoundedFile, name: str) -> tuple[np.dtype, bool]:
    """Returns the element type in a datatype message, and whether it is big-endian."""
    kind, bits = datatype.read(0, 1)[0] & 0x0F, datatype.read(1, 1)[0]
    size = number(datatype, 4, 4)
    if kind == _INTEGER and size in (1, 2, 4, 8) and number(datatype, 10, 2) == 8 * size:
        return np.dtype(f"{'i' if bits & 8 else 'u'}{size}"), bool(bits & 1)
    if kind == _FLOAT and not bits & 0x40:
        dtype = _FLOATS.get((datatype.read(13, 1)[0], datatype.read(15, 1)[0]))
        if dtype is not None and dtype.itemsize == size and number(datatype, 10, 2) == 8 * size:
            return dtype, bool(bits & 1)
    if kind == _OPAQUE and size == 2:
        return BFLOAT16, False  # h5py stores bfloat16 as opaque elements of two bytes.
    raise _unsupported(datatype, "an unusual element type", name)
