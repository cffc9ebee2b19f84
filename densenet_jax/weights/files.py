"""Reads weight files of several frameworks into NumPy arrays, safely even if a file is malicious.

The readers never call anything that a file names, and they check every size before they allocate
memory. PyTorch, Keras, MindSpore and h5py need not be installed. The format is detected from the
content, because extensions are often wrong.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from densenet_jax.weights.readers.bounded_file import (
    MAX_NAME,
    MAX_TOTAL_BYTES,
    BoundedFile,
    Budget,
    WeightsError,
    shown,
)
from densenet_jax.weights.readers.hdf5 import SIGNATURE
from densenet_jax.weights.readers.keras import WEIGHTS_MEMBER, read_keras_hdf5, read_keras_zip
from densenet_jax.weights.readers.mindspore import read_mindspore
from densenet_jax.weights.readers.msgpack import read_msgpack
from densenet_jax.weights.readers.npz import read_npz
from densenet_jax.weights.readers.safetensors import locate_safetensors, read_safetensors
from densenet_jax.weights.readers.torch import is_torch_pickle, read_torch_stream, read_torch_zip
from densenet_jax.weights.readers.zip_archive import members

FORMATS = (
    "safetensors, PyTorch (.pth, .pt, .bin), Keras (.h5, .keras), MindSpore (.ckpt), NumPy (.npz), "
    "Flax (.msgpack)"
)

INDEX = ".index.json"
MAX_INDEX = 4 << 20  # characters
MAX_PARTS = 64

# Modules that data parallelism and torch.compile add to names.
_WRAPPERS = ("module", "_orig_mod")
# Names from before PyTorch 0.4, which forbids dots in the names of modules.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all tensors of a weight file.

    The names are those in the file, with these exceptions. The modules that data parallelism
    (`module.`) and torch.compile (`_orig_mod.`) add are removed; `norm.1`, as PyTorch named it
    before 0.4, becomes `norm1`; Keras's names are `layer/variable` for every version of Keras.
    From a training checkpoint, only the state dict is returned: the moving average of the weights
    if there is one (the order is that of `readers.state_dicts.STATE_DICT_KEYS`).

    Args:
      path: a .safetensors, .pth, .pt, .bin, .h5, .keras, .ckpt, .npz or .msgpack file, or the
        index (.index.json) of one that is in several parts.

    Returns:
      {name: array} in the order of the file, with the file's element types and layouts. Arrays
      share no memory.

    Raises:
      WeightsError: the file cannot be read; the message names the file and the remedy.
    """
    if os.fspath(path).endswith(INDEX):
        return _read_parts(os.fspath(path))
    return _read_with(path, _read_all)


def _read_parts(path: str) -> dict[str, np.ndarray]:
    """Reads the files that an index lists: {"weight_map": {name of a tensor: name of a file}}.

    Raises:
      WeightsError: the index or a file is damaged, or a tensor is not where the index says.
    """
    try:
        size = check_regular(path)
        with open(path, encoding="utf-8") as stream:
            places = json.loads(stream.read(MAX_INDEX + 1))["weight_map"] if size else {}
        files = list(dict.fromkeys(places.values()))
        strange = [name for name in files if os.path.basename(name) != name or name == ".."]
    except WeightsError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        strange, files, places = [], [], {}
    if not files or len(files) > MAX_PARTS or strange:
        raise WeightsError(
            f"{path}: it is no index of weights in parts, {{'weight_map': {{tensor: file}}}}, of "
            f"at most {MAX_PARTS} files beside it; download it again"
        )
    arrays: dict[str, np.ndarray] = {}
    for name in files:
        part = os.path.join(os.path.dirname(path), name)
        found = _read_with(part, _read_any)
        expected = {tensor for tensor, place in places.items() if place == name}
        if found.keys() != expected or arrays.keys() & found.keys():
            odd = shown(min(found.keys() ^ expected or arrays.keys() & found.keys()))
            raise WeightsError(f"{part}: its tensors are not those of the index, as {odd}")
        arrays |= found
        if sum(array.nbytes for array in arrays.values()) > MAX_TOTAL_BYTES:
            raise WeightsError(f"{path}: its parts have over {MAX_TOTAL_BYTES} bytes together")
    return _read_with(path, lambda file: _with_plain_names(file, arrays))


def locate(path: str | os.PathLike[str]) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Returns the positions of the tensors in a safetensors file, to map it into memory.

    Only the header is read, so the file may have any size.

    Args:
      path: a safetensors file.

    Returns:
      {name: (element type, shape, first byte in the file)}.

    Raises:
      WeightsError: the file cannot be read; the message names the file and the remedy.
    """
    return _read_with(path, locate_safetensors)


def format_of(path: str | os.PathLike[str]) -> str:
    """Returns the name of the format of a weight file, such as "safetensors".

    Raises:
      WeightsError: the file has none of the formats that can be read.
    """
    return _read_with(path, lambda file: _reader(file)[0])


def check_regular(path: str) -> int:
    """Returns the size of a file in bytes; call it before opening, as a pipe would block for ever.

    Raises:
      WeightsError: it is a folder, a pipe or a device, or does not exist.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise WeightsError(f"{path}: {reason}; check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise WeightsError(f"{path}: it is a folder; pass the path of a weight file in it")
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path}: it is not a regular file; copy its content to one")
    return status.st_size


def _read_with(path: str | os.PathLike[str], reader: Callable[[BoundedFile], Any]) -> Any:
    """Returns the result of `reader` for the file at `path`; every error is a `WeightsError`."""
    path = os.fspath(path)
    try:
        size = check_regular(path)
        with open(path, "rb") as stream:
            file = BoundedFile(path, stream, 0, size, Budget.of_file(size))
            return reader(file)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise WeightsError(f"{path}: the file cannot be read: {error.strerror or error}") from error
    except WeightsError:
        raise
    except Exception as error:
        # If a reader fails at something that it did not check, the file is still the culprit.
        reason = type(error).__name__
        raise WeightsError(
            f"{path}: the file is damaged ({reason}); download or save it again"
        ) from error


def _read_all(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {name: array} of all tensors in a file, under their normalised names."""
    arrays = _read_any(file)
    if not arrays:
        raise file.fail("it holds no tensors; save the weights again")
    return _with_plain_names(file, arrays)


def _read_any(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {name: array} of all tensors in a file of any of the formats."""
    return _reader(file)[1]()


def _reader(file: BoundedFile) -> tuple[str, Callable[[], dict[str, np.ndarray]]]:
    """Returns the name of a file's format, and the function that reads its tensors."""
    head = file.read(0, min(file.size, 512))
    if reason := _mistaken_for_weights(head, file.path):
        raise file.fail(reason)
    if head.startswith(b"PK"):
        entries = members(file)
        if WEIGHTS_MEMBER in entries:
            return "Keras (.keras)", lambda: read_keras_zip(entries)
        if sum(map(is_torch_pickle, entries)) == 1:
            return "PyTorch", lambda: read_torch_zip(file, entries)
        if entries and all(name.endswith(".npy") for name in entries):
            return "NumPy (.npz)", lambda: read_npz(file, entries)
        raise file.fail(_what_the_archive_is(entries))
    if head.startswith(SIGNATURE):
        return "Keras (HDF5)", lambda: read_keras_hdf5(file)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "PyTorch (before 1.6) or pickle", lambda: read_torch_stream(file)
    if head[8:9] == b"{":
        return "safetensors", lambda: read_safetensors(file)
    if head[:1] == b"\n":
        return "MindSpore", lambda: read_mindspore(file)
    if (head[:1] and 0x80 < head[0] < 0x90) or head[:1] in (b"\xde", b"\xdf"):
        return "Flax (.msgpack)", lambda: read_msgpack(file)
    raise file.fail(f"it has none of the formats that can be read: {FORMATS}")


def _what_the_archive_is(entries: Iterable[str]) -> str:
    """Returns the error message for a zip archive of another format, from its members' names."""
    files = list(entries)
    if any(name.endswith("archive_format") for name in files):
        return (
            "it is a program of torch.export; load it with torch.export.load and save its "
            "state_dict with torch.save"
        )
    weights = [name for name in files if name.lower().endswith((".pth", ".pt", ".h5", ".bin"))]
    what = f"; unpack it and pass {shown(weights[0])}" if weights else "; unpack it"
    return f"it is a zip archive, but PyTorch, Keras or NumPy did not write it{what}"


# Suffix of files in formats that cannot be read -> why, and what to do.
_FOREIGN = {
    ".onnx": "it is an ONNX graph, whose weights have lost their names; load the network that it "
    "was exported from",
    ".pdparams": "it is a file of PaddlePaddle; save the weights there under the names of "
    "torchvision, with numpy.savez",
    ".distcp": "it is a part of a distributed checkpoint; convert the folder with "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth",
    ".index": "it is a checkpoint of TensorFlow; load it there and save it with "
    "model.save_weights('x.weights.h5')",
    ".mindir": "it is a graph of MindSpore; save the network with mindspore.save_checkpoint",
    ".pb": "it is a graph of TensorFlow; load it there and save it with model.save('x.keras')",
    ".tflite": "it is a graph of TensorFlow Lite; use the network that it was made from",
    ".weights.json": "it lists the parts of Keras weights; save them in one file, without "
    "max_shard_size",
}
_DATA_OF_TENSORFLOW = re.compile(r"\.data-\d{5}-of-\d{5}$")


def _mistaken_for_weights(head: bytes, path: str) -> str | None:
    """Returns the error message for files that are often mistaken for weights, else None.

    Args:
      head: the first 512 bytes of the file.
      path: of the file.
    """
    name = _DATA_OF_TENSORFLOW.sub(".index", os.path.basename(path).lower())
    for suffix, reason in _FOREIGN.items():
        if name.endswith(suffix):
            return reason
    start = head.lstrip().lower()
    if not start:
        return "it is empty; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights; run `git lfs pull` or download the file"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page saved under this name; download the file itself, not its page"
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it, or save the weights again with a newer PyTorch"
    if start.startswith((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return "it is compressed; unpack it first"
    if start.startswith(b"\x93numpy"):
        return "it is a single array without a name; save the weights with numpy.savez"
    if not re.search(rb"[^\t\n\f\r -\x7e\x80-\xff]", head) and _is_text(head):
        return f"it is a text file, not weights; the formats that can be read are {FORMATS}"
    return None


def _is_text(head: bytes) -> bool:
    """Returns whether the bytes are UTF-8; a character may be cut off at their end."""
    try:
        head[: len(head) - 3 if len(head) == 512 else len(head)].decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8
    return True


def _with_plain_names(file: BoundedFile, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays under the names that an unwrapped model in a current PyTorch has."""
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        plain = _OLD_NAME.sub(r"\1\2", plain)
        if not 0 < len(plain) <= MAX_NAME or not plain.isprintable():
            raise file.fail(f"a tensor's name is empty, too long or not printable: {shown(name)}")
        if plain in result:
            raise file.fail(f"it appears twice, also as {shown(plain)}; save it once", name)
        result[plain] = array
    result.pop("n_averaged", None)  # The step counter of PyTorch's AveragedModel is not a weight.
    return result
