"""Writes PyTorch's files opcode by opcode, including invalid ones, without PyTorch."""

import io
import math
import pickle
import struct
import zipfile
from dataclasses import dataclass

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}."


@dataclass(frozen=True)
class Raw:
    """Opcodes to put in place of a value."""

    code: bytes


@dataclass(frozen=True)
class Name:
    """A class or function."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """The result of a call."""

    callee: object
    args: tuple


@dataclass(frozen=True)
class Persistent:
    """The object that a persistent id refers to."""

    pid: object


def code(value):
    """Returns the opcodes that put a value on the stack."""
    match value:
        case Raw():
            return value.code
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int() if 0 <= value < 1 << 31:
            return pickle.BININT + struct.pack("<i", value)
        case int():
            size = value.bit_length() // 8 + 1
            return pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            text = value.encode()
            return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case tuple():
            return pickle.MARK + b"".join(map(code, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(code, value)) + pickle.APPENDS
        case dict():
            items = b"".join(code(key) + code(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case Name():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case Call():
            return code(value.callee) + code(value.args) + pickle.REDUCE
        case Persistent():
            return code(value.pid) + pickle.BINPERSID
    raise TypeError(value)


def dump(value):
    return b"\x80\x02" + code(value) + pickle.STOP


def tensor(shape, strides=None, *, count, key="0", offset=0, kind="FloatStorage"):
    """Returns the value that represents a view into a storage of `count` elements."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    storage = Persistent(("storage", Name("torch", kind), key, "cpu", count))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, {}))


def torch_zip(content, storages=None, *, byteorder=b"little", compression=zipfile.ZIP_STORED):
    """Returns an archive with a pickle (of `content`, or `content` itself) and {key: storage}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        pickled = content if isinstance(content, bytes) else dump(content)
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def torch_stream(content, storages=None, *, element_size=4):
    """Returns the same content as a legacy file."""
    storages = storages or {}
    pickled = content if isinstance(content, bytes) else dump(content)
    data = b"".join(
        struct.pack("<Q", len(data) // element_size) + data for data in storages.values()
    )
    return MAGIC + PROTOCOL + SYSTEM + pickled + dump(list(storages)) + data
