"""A reader for PyTorch's files: zip archives, and the pickle streams written before 1.6.

In both, a pickle describes the tensors as views into storages, and the bytes of the storages are
elsewhere in the file. `state_dicts` finds the weights in what was pickled.
"""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from densenet_jax.weights.readers import state_dicts
from densenet_jax.weights.readers.bounded_file import BoundedFile, shown
from densenet_jax.weights.readers.pickles import Global, Opaque, Pickles
from densenet_jax.weights.readers.state_dicts import Inline, Tensor
from densenet_jax.weights.readers.zip_archive import Member

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# Name of a storage class or dtype -> element type.
_DTYPES = {
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.FloatStorage": np.dtype("f4"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("i8"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.storage.UntypedStorage": np.dtype("u1"),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
}


class Storage(NamedTuple):
    """A sequence of elements that tensors are views of.

    Attributes:
      dtype: element type.
      key: name of the storage in the file.
      size: number of elements.
      begin: first element, if the storage is itself a view, as it could be before PyTorch 0.4.
    """

    dtype: np.dtype
    key: str
    size: int
    begin: int


def read_torch_zip(file: BoundedFile, entries: dict[str, Member]) -> dict[str, np.ndarray]:
    """Returns {name: array} of the state dict in an archive with the members `entries`.

    The archive may be a TorchScript program, whose tensors are attributes of its modules.
    """
    (pickled,) = [name for name in entries if is_torch_pickle(name)]
    folder = pickled[: -len("data.pkl")]
    big_endian = False
    if order := entries.get(f"{folder}byteorder"):
        big_endian = order.open().read(0, min(order.size, 8)) == b"big"
    content = Pickles(entries[pickled].open(), _rebuild, _storage).load()

    opened: dict[str, BoundedFile] = {}

    def storage_data(name: str, storage: Storage) -> BoundedFile:
        if storage.key not in opened:
            member = entries.get(f"{folder}data/{storage.key}")
            if member is None:
                raise file.fail(
                    f"the data of its storage {shown(storage.key)} are missing; "
                    "save the file again",
                    name,
                )
            if member.size != storage.size * storage.dtype.itemsize:
                raise file.fail(
                    f"its storage has {member.size} bytes instead of {storage.size} elements of "
                    f"{storage.dtype}; download or save the file again",
                    name,
                )
            opened[storage.key] = member.open()
        return opened[storage.key]

    return _arrays(file, content, storage_data, big_endian)


def is_torch_pickle(name: str) -> bool:
    """Returns whether a member of an archive is the pickle that describes PyTorch's tensors."""
    return name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"


def read_torch_stream(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {name: array} of a legacy file's state dict: five pickles, then the storages."""
    storages: dict[str, Storage] = {}

    def resolve(pid: object) -> object:
        storage = _storage(pid)
        if isinstance(storage, Storage):
            storages.setdefault(storage.key, storage)
        return storage

    pickles = Pickles(file, _rebuild, resolve)
    first = pickles.load()
    if isinstance(first, dict | Opaque):  # by pickle.dump, with arrays of NumPy or JAX
        if isinstance(first, dict) and "StructuredToParameterName@@" in first:
            raise file.fail(
                "it is a file of PaddlePaddle, whose names differ from all that are known; load it "
                "with the model there and save its weights under the names of torchvision"
            )
        return _arrays(file, first, _no_storage(file), big_endian=False)
    if first != MAGIC_NUMBER or pickles.load() != PROTOCOL_VERSION:
        raise file.fail(
            "it is a pickle, but torch.save did not write it; "
            "save the weights with torch.save or as safetensors"
        )
    # The sizes of C types on the machine that wrote the file. The data are always little-endian.
    pickles.load()
    content, keys = pickles.load(), pickles.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise file.fail("its list of storages is damaged; download or save the file again")

    data: dict[str, BoundedFile] = {}
    position = pickles.position
    for key in keys:
        if key not in storages or key in data:
            raise file.fail(
                f"its list of storages is damaged at {shown(key)}; download or save the file again"
            )
        count = int.from_bytes(file.read(position, 8), "little")
        size = count * storages[key].dtype.itemsize
        data[key] = file.part(position + 8, size)
        position += 8 + size

    def storage_data(name: str, storage: Storage) -> BoundedFile:
        if storage.key not in data:
            raise file.fail(
                f"the data of its storage {shown(storage.key)} are missing; save the file again",
                name,
            )
        return data[storage.key]

    return _arrays(file, content, storage_data, big_endian=False)


def _no_storage(file: BoundedFile) -> Callable[[str, Storage], BoundedFile]:
    """Returns a function that refuses tensors whose data the file does not have."""

    def storage_data(name: str, storage: Storage) -> BoundedFile:
        raise file.fail("its data are not in the file; save it with torch.save", name)

    return storage_data


def _rebuild(callee: str, args: Any) -> object:
    """Returns the object that replaces a call of one of PyTorch's functions in a pickle.

    `torch._utils._rebuild_tensor` and similar functions give a `Tensor`; a parameter, a tensor of
    another device and a subclass are replaced by their tensor and a `torch.Size` by its tuple;
    other calls become `Opaque`.
    """
    kind = callee.removeprefix("torch._utils._rebuild_")
    size = len(args) if isinstance(args, tuple) else 0
    if kind in ("tensor", "tensor_v2") and size >= 4:
        return Tensor(*args[:4])
    if kind == "tensor_v3" and size >= 7:
        return Tensor(args[0], args[1], args[2], args[3], dtype=args[6])
    if kind in ("parameter", "parameter_with_state") or callee == "torch.Size":
        return args[0] if size else None
    if kind.startswith("device_tensor_from_") and size:
        return args[0]
    if callee == "torch._tensor._rebuild_from_type_v2" and size >= 3:
        function, _, inner = args[:3]
        tensor = _rebuild(function.name, inner) if isinstance(function, Global) else None
        return tensor if isinstance(tensor, Tensor) else Opaque(Global(callee), args)
    return Opaque(Global(callee), args)


def _storage(pid: object) -> object:
    """Returns the storage that a persistent id stands for; other ids give `Opaque`.

    An id is ("storage", class, key, device, number of elements[, legacy view]), where a legacy view
    is (key, first element, number of elements).
    """
    if isinstance(pid, tuple) and 4 <= len(pid) <= 6:
        match (*pid, None, None)[:6]:
            case ("storage", Global(name), str(key), _, int(size), view) if name in _DTYPES:
                begin = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
                if isinstance(begin, int) and 0 <= size < 1 << 48 and 0 <= begin < 1 << 48:
                    return Storage(_DTYPES[name], key, size, begin)
            case ("module", Global(), *_):  # A class, saved together with its source code.
                return pid[1]
    return Opaque(None, pid)


def _arrays(
    file: BoundedFile,
    content: Any,
    storage_data: Callable[[str, Storage], BoundedFile],
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Returns {name: array} of the state dict in an unpickled object.

    Args:
      file: the file, for error messages.
      content: the object.
      storage_data: maps the name of a tensor and its storage to the bytes of the storage.
      big_endian: whether elements are stored with the most significant byte first.
    """
    state_dict = state_dicts.find(file, content)
    if not state_dict:
        raise file.fail(_what_it_holds(content))
    arrays = {}
    for name, tensor in state_dict.items():
        if isinstance(tensor, Inline):
            arrays[name] = _inline(file, name, tensor)
            continue
        storage = tensor.storage if isinstance(tensor, Tensor) else None
        dtype = getattr(tensor, "dtype", None)
        known = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
        if (
            not isinstance(tensor, Tensor)
            or not isinstance(storage, Storage)
            or (dtype is not None and known is None)
        ):
            raise file.fail(
                "it is sparse, quantized or has an unusual element type; "
                "make it a dense float32 tensor and save it again",
                name,
            )
        intact = type(tensor.offset) is int and isinstance(tensor.strides, tuple)
        if not intact or not 0 <= tensor.offset < 1 << 48:
            raise file.fail("its position in its storage is damaged; save the file again", name)
        dtype = known or storage.dtype
        offset = (storage.begin + tensor.offset) * dtype.itemsize
        shape = file.shape(name, tensor.shape)
        arrays[name] = storage_data(name, storage).array(
            name, dtype, shape, offset, tensor.strides, big_endian
        )
    return arrays


def _inline(file: BoundedFile, name: str, array: Inline) -> np.ndarray:
    """Returns an array whose elements are in the pickle."""
    stream = io.BytesIO(array.data)
    data = BoundedFile(file.path, stream, 0, len(array.data), file.budget)
    shape = file.shape(name, array.shape)
    stored = shape[::-1] if array.fortran else shape
    values = data.array(name, array.dtype, stored, big_endian=array.big_endian)
    return values.T.copy() if array.fortran else values


def _what_it_holds(content: object) -> str:
    """Returns the error message for an unpickled object without a state dict."""
    if isinstance(content, Opaque) and isinstance(content.callee, Global):
        return (
            f"it holds {shown(content.callee.name)} without tensors (a frozen program has its "
            "weights in its code); load it where its code is installed and save model.state_dict()"
        )
    if isinstance(content, dict):
        keys = ", ".join(re.sub(r"\W", "?", str(key)[:30]) for key in list(content)[:8])
        return f"none of its entries ({keys or 'none'}) is a state dict; save model.state_dict()"
    kind = type(content).__name__.replace(Opaque.__name__, "unknown object")
    return f"it holds one {kind} instead of a state dict; save model.state_dict()"
