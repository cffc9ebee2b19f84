"""PyTorch's files: the zip archive of today and the pickle stream of before 1.6.

Either way a pickle describes the tensors as views into storages, and the storages' bytes lie
elsewhere in the file. The state dict is searched among what a trainer saved along with it.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_TENSORS, BoundedFile, shown
from densenet_jax.weights.readers.pickles import Global, Opaque, Pickles
from densenet_jax.weights.readers.zip_archive import Member

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# Where trainers keep the weights, the best first: an exponential moving average is what was
# evaluated, so it goes before the raw weights, as in timm.
STATE_DICT_KEYS = (
    *("state_dict_ema", "model_ema_state_dict", "ema_state_dict", "model_ema", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
)

# Storage class or dtype -> element type.
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
    """A run of `count` elements that tensors are views of; `begin` is that of a legacy view."""

    dtype: np.dtype
    key: str
    count: int
    begin: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it, nothing of which has been checked."""

    storage: object
    offset: object
    shape: object
    strides: object
    dtype: object = None


def read_torch_zip(file: BoundedFile, entries: dict[str, Member]) -> dict[str, np.ndarray]:
    """Returns the state dict in the archive, of which `entries` are the members."""
    (pickled,) = [name for name in entries if is_torch_pickle(name)]
    folder = pickled[: -len("data.pkl")]
    if f"{folder}constants.pkl" in entries:
        raise file.fail(
            "it is a TorchScript program, not weights; save it again with "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    big_endian = False
    if order := entries.get(f"{folder}byteorder"):
        big_endian = order.open().read(0, min(order.size, 8)) == b"big"
    content = Pickles(entries[pickled].open(), _rebuild, _storage).load()

    opened: dict[str, BoundedFile] = {}

    def storage_data(name: str, storage: Storage) -> BoundedFile:
        if storage.key not in opened:
            member = entries.get(f"{folder}data/{storage.key}")
            if member is None:
                raise file.fail(f"the data of its storage {shown(storage.key)} are missing", name)
            if member.size != storage.count * storage.dtype.itemsize:
                raise file.fail(
                    f"its storage has {member.size} bytes where {storage.count} elements of "
                    f"{storage.dtype} are announced; download or save the file again",
                    name,
                )
            opened[storage.key] = member.open()
        return opened[storage.key]

    return _arrays(file, content, storage_data, big_endian)


def is_torch_pickle(name: str) -> bool:
    return name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"


def read_torch_stream(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns the state dict in a legacy file: five pickles, then the storages in a row."""
    storages: dict[str, Storage] = {}

    def resolve(pid: object) -> object:
        storage = _storage(pid)
        if isinstance(storage, Storage):
            storages.setdefault(storage.key, storage)
        return storage

    pickles = Pickles(file, _rebuild, resolve)
    if pickles.load() != MAGIC_NUMBER or pickles.load() != PROTOCOL_VERSION:
        raise file.fail(
            "it is a pickle that torch.save did not write; "
            "save the weights with torch.save or as safetensors"
        )
    pickles.load()  # Sizes of C types on the machine that wrote it; the data are little-endian.
    content, keys = pickles.load(), pickles.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise file.fail("its list of storages is damaged; download or save the file again")

    data: dict[str, BoundedFile] = {}
    position = pickles.position
    for key in keys:
        if key not in storages or key in data:
            raise file.fail(f"its list of storages is damaged at {shown(key)}")
        count = int.from_bytes(file.read(position, 8), "little")
        size = count * storages[key].dtype.itemsize
        data[key] = file.part(position + 8, size)
        position += 8 + size

    def storage_data(name: str, storage: Storage) -> BoundedFile:
        if storage.key not in data:
            raise file.fail(f"the data of its storage {shown(storage.key)} are missing", name)
        return data[storage.key]

    return _arrays(file, content, storage_data, big_endian=False)


def _rebuild(callee: str, args: Any) -> object:
    """Stands in for the functions by which `torch.save` rebuilds objects."""
    kind = callee.removeprefix("torch._utils._rebuild_")
    size = len(args) if isinstance(args, tuple) else 0
    if kind in ("tensor", "tensor_v2") and size >= 4:
        return Tensor(*args[:4])
    if kind == "tensor_v3" and size >= 7:
        return Tensor(*args[:4], dtype=args[6])
    if kind in ("parameter", "parameter_with_state") or callee == "torch.Size":
        return args[0] if size else None
    return Opaque(Global(callee), args)


def _storage(pid: object) -> object:
    """Reads a persistent id: ("storage", class, key, device, elements[, legacy view])."""
    if isinstance(pid, tuple) and 4 <= len(pid) <= 6:
        match (*pid, None, None)[:6]:
            case ("storage", Global(name), str(key), _, int(count), view) if name in _DTYPES:
                begin = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
                if isinstance(begin, int) and 0 <= count < 1 << 48 and 0 <= begin < 1 << 48:
                    return Storage(_DTYPES[name], key, count, begin)
            case ("module", Global(), *_):  # A class whose source code was saved along.
                return pid[1]
    return Opaque(None, pid)


def _find_state_dict(content: object, seen: set[int]) -> dict[str, Tensor]:
    """Returns the named tensors of the first of `STATE_DICT_KEYS` that has any, else its own."""
    if not isinstance(content, dict) or id(content) in seen:
        return {}
    seen.add(id(content))
    if len(seen) < 100:
        for key in STATE_DICT_KEYS:
            if found := _find_state_dict(content.get(key), seen):
                return found
    return {name: value for name, value in content.items() if _is_weight(name, value)}


def _is_weight(name: object, value: object) -> bool:
    # A tensor of a kind that cannot be read must not pass for one that is not there.
    callee = value.callee if isinstance(value, Opaque) else None
    odd = isinstance(callee, Global) and callee.name.startswith("torch._utils._rebuild")
    return isinstance(name, str) and (isinstance(value, Tensor) or odd)


def _arrays(
    file: BoundedFile,
    content: Any,
    storage_data: Callable[[str, Storage], BoundedFile],
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Returns the tensors of the state dict that is found in an unpickled file."""
    state_dict = _find_state_dict(content, set())
    if not state_dict:
        raise file.fail(_what_it_holds(content))
    if len(state_dict) > MAX_TENSORS:
        raise file.fail(f"it holds more than {MAX_TENSORS} tensors")
    arrays = {}
    for name, tensor in state_dict.items():
        storage = getattr(tensor, "storage", None)
        dtype = getattr(tensor, "dtype", None)
        known = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
        if not isinstance(storage, Storage) or (dtype is not None and known is None):
            raise file.fail(
                "it is sparse, quantized or of an unusual element type; "
                "make it a dense float32 tensor and save it again",
                name,
            )
        if type(tensor.offset) is not int or not isinstance(tensor.strides, tuple):
            raise file.fail("its place in its storage is damaged", name)
        if not 0 <= tensor.offset < 1 << 48:
            raise file.fail("its place in its storage is damaged", name)
        dtype = known or storage.dtype
        offset = (storage.begin + tensor.offset) * dtype.itemsize
        shape = file.shape(name, tensor.shape)
        arrays[name] = storage_data(name, storage).array(
            name, dtype, shape, offset, tensor.strides, big_endian
        )
    return arrays


def _what_it_holds(content: object) -> str:
    if isinstance(content, Opaque) and isinstance(content.callee, Global):
        return (
            f"it holds a whole {shown(content.callee.name)} instead of weights; "
            "load it where its code is and save model.state_dict()"
        )
    if isinstance(content, dict):
        keys = ", ".join(re.sub(r"\W", "?", str(key)[:30]) for key in list(content)[:8])
        return f"no state dict is found among its entries ({keys or 'none'}); save one alone"
    kind = type(content).__name__.replace(Opaque.__name__, "unknown object")
    return f"it holds one {kind} instead of a state dict; save model.state_dict()"
