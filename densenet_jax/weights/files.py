"""Reads weight files of every framework into NumPy arrays, and trusts none of them.

No reader calls anything that a file names, and none takes memory on the word of a file. PyTorch,
Keras, MindSpore and h5py need not be installed. The format is told from the content: extensions
are too often wrong.
"""

import os
import re
import stat
from collections.abc import Callable
from typing import Any

import numpy as np

from densenet_jax.weights.readers.bounded_file import (
    MAX_NAME,
    BoundedFile,
    Budget,
    WeightsError,
    shown,
)
from densenet_jax.weights.readers.hdf5 import SIGNATURE
from densenet_jax.weights.readers.keras import WEIGHTS_MEMBER, read_keras_hdf5, read_keras_zip
from densenet_jax.weights.readers.mindspore import read_mindspore
from densenet_jax.weights.readers.npz import read_npz
from densenet_jax.weights.readers.safetensors import locate_safetensors, read_safetensors
from densenet_jax.weights.readers.torch import is_torch_pickle, read_torch_stream, read_torch_zip
from densenet_jax.weights.readers.zip_archive import members

FORMATS = (
    "safetensors, PyTorch (.pth, .pt, .bin), Keras (.h5, .keras), MindSpore (.ckpt), NumPy (.npz)"
)

# What data parallelism and torch.compile put into names.
_WRAPPERS = ("module", "_orig_mod")
# PyTorch could not have dots in module names any more from 0.4 on.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a weight file, whoever wrote it.

    What data parallelism (`module.`), torch.compile (`_orig_mod.`) and PyTorch before 0.4
    (`norm.1`) do to names is undone. Apart from that PyTorch's, MindSpore's and NumPy's names are
    those in the file; Keras's are `layer/variable` in every version. Of a training checkpoint the
    state dict is returned, the moving average where there is one (`readers.torch.STATE_DICT_KEYS`).

    Args:
      path: a .safetensors, .pth, .pt, .bin, .h5, .keras, .ckpt or .npz file.

    Returns:
      Name -> array in the file's element type and layout, in the file's order; no array shares
      memory with another.

    Raises:
      WeightsError: whatever is wrong with the file, in one sentence.
    """
    return _with(path, _read_all)


def locate(path: str | os.PathLike[str]) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Returns each tensor of a safetensors file as (element type, shape, first byte).

    Only the header is read: for files to be mapped into memory, of any size.

    Raises:
      WeightsError: whatever is wrong with the file, in one sentence.
    """
    return _with(path, locate_safetensors)


def _with(path: str | os.PathLike[str], reader: Callable[[BoundedFile], dict[str, Any]]) -> Any:
    """Returns what a reader makes of an opened file; every error is one about the file."""
    path = os.fspath(path)
    try:
        # Asked before opening: a named pipe would never open.
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise WeightsError(f"{path}: it is a folder; name a weight file in it")
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path}: it is not a regular file; copy it to one")
        with open(path, "rb") as stream:
            size = status.st_size
            file = BoundedFile(path, stream, 0, size, Budget.of_file(size))
            return reader(file)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except WeightsError:
        raise
    except Exception as error:
        # Should a reader stumble over what it did not check, the culprit is still the file.
        reason = type(error).__name__
        raise WeightsError(f"{path}: it is damaged ({reason}); download it again") from error


def _read_all(file: BoundedFile) -> dict[str, np.ndarray]:
    arrays = _read_any(file)
    if not arrays:
        raise file.fail("it holds no tensors; save the weights again")
    return _unwrapped(file, arrays)


def _read_any(file: BoundedFile) -> dict[str, np.ndarray]:
    head = file.read(0, min(file.size, 512))
    if reason := _not_weights(head):
        raise file.fail(reason)
    if head.startswith(b"PK"):
        entries = members(file)
        if WEIGHTS_MEMBER in entries:
            return read_keras_zip(entries)
        if sum(map(is_torch_pickle, entries)) == 1:
            return read_torch_zip(file, entries)
        if entries and all(name.endswith(".npy") for name in entries):
            return read_npz(file, entries)
        raise file.fail("it is a zip archive, but not of PyTorch, Keras or NumPy; unpack it")
    if head.startswith(SIGNATURE):
        return read_keras_hdf5(file)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return read_torch_stream(file)
    if head[8:9] == b"{":
        return read_safetensors(file)
    if head[:1] == b"\n":
        return read_mindspore(file)
    raise file.fail(f"it is in none of the formats that can be read: {FORMATS}")


def _not_weights(head: bytes) -> str | None:
    """Returns what a file is that people mistake for weights, and what to do about it."""
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
        return f"it is a text file, not weights; what can be read is {FORMATS}"
    return None


def _is_text(head: bytes) -> bool:
    try:
        head[: len(head) - 3 if len(head) == 512 else len(head)].decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8
    return True


def _unwrapped(file: BoundedFile, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays under the names that the bare model of today gives them."""
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        plain = _OLD_NAME.sub(r"\1\2", plain)
        if not 0 < len(plain) <= MAX_NAME or not plain.isprintable():
            raise file.fail(f"a tensor's name is empty, too long or not printable: {shown(name)}")
        if plain in result:
            raise file.fail(f"it is there twice, also as {shown(plain)}", name)
        result[plain] = array
    result.pop("n_averaged", None)  # The step counter of PyTorch's AveragedModel.
    return result
