"""Reads weight files of several frameworks into NumPy arrays, safely even if a file is malicious.

The readers never call anything that a file names, and they check every size before they allocate
memory. PyTorch, Keras, MindSpore and h5py need not be installed. The format is detected from the
content, because extensions are often wrong.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from densenet_jax.weights import flax_states
from densenet_jax.weights.other_formats import (
    FORMATS,
    mistaken_for_weights,
    what_the_archive_is,
)
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
from densenet_jax.weights.readers.msgpack import read_msgpack
from densenet_jax.weights.readers.npz import read_npz
from densenet_jax.weights.readers.safetensors import locate_safetensors, read_safetensors
from densenet_jax.weights.readers.torch import is_torch_pickle, read_torch_stream, read_torch_zip
from densenet_jax.weights.readers.zip_archive import members

KERAS_INDEX = ".weights.json"
INDEXES = (".index.json", KERAS_INDEX)  # of weights in several files
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
    if there is one (the order is that of `readers.state_dicts.STATE_DICT_KEYS`; see `flax_states`).

    Args:
      path: a .safetensors, .pth, .pt, .bin, .h5, .keras, .ckpt, .npz or .msgpack file, or the
        index of one that is in several parts (.index.json, or Keras's .weights.json).

    Returns:
      {name: array} in the order of the file, with the file's element types and layouts. Arrays
      share no memory.

    Raises:
      WeightsError: the file cannot be read; the message names the file and the remedy.
    """
    if os.fspath(path).endswith(INDEXES):
        return _read_parts(os.fspath(path))
    return _read_with(path, _read_all)


def _read_parts(path: str) -> dict[str, np.ndarray]:
    """Reads the files that an index lists.

    An index is {"weight_map": {name of a tensor: name of a file}}. That of Keras names groups of
    variables instead, each in one file or in a list of files.

    Raises:
      WeightsError: the index or a file is damaged, or a tensor is not where the index says.
    """
    places = _places(path)
    paths = {
        name: os.path.join(os.path.dirname(path), name)
        for names in places.values()
        for name in names
    }
    budget = Budget.of_file(sum(map(check_regular, paths.values())))
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_opened(part, budget)) for name, part in paths.items()}
        if path.endswith(KERAS_INDEX):
            arrays = read_keras_hdf5(*files.values())
        else:
            arrays = {}
            for name, file in files.items():
                found = _read_any(file)
                expected = {tensor for tensor, names in places.items() if names == [name]}
                if found.keys() != expected or arrays.keys() & found.keys():
                    odd = shown(min(found.keys() ^ expected or arrays.keys() & found.keys()))
                    raise file.fail(f"its tensors are not those of the index, as {odd}")
                arrays |= found
    return _read_with(path, lambda file: _with_plain_names(file, arrays))


def _places(path: str) -> dict[str, list[str]]:
    """Returns {entry of an index: [names of files beside it]}; see `_read_parts`."""
    places: dict[str, list[str]] = {}
    try:
        size = check_regular(path)
        with open(path, encoding="utf-8") as stream:
            entries = json.loads(stream.read(MAX_INDEX + 1))["weight_map"] if size else {}
        for entry, names in entries.items():
            places[entry] = names if isinstance(names, list) else [names]
        files = {name for names in places.values() for name in names}
        wrong = [
            name
            for name in files
            if os.path.basename(name) != name or name in ("..", "") or not name.isprintable()
        ]
    except WeightsError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        files, wrong = set(), []
    if not files or len(files) > MAX_PARTS or wrong:
        raise WeightsError(
            f"{path}: it is no index of weights in parts, {{'weight_map': {{tensor: file}}}}, of "
            f"at most {MAX_PARTS} files beside it; download it again"
        )
    return places


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
    if os.fspath(path).endswith(INDEXES):
        return "an index of several files"
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
    with _opened(os.fspath(path)) as file:
        return reader(file)


@contextlib.contextmanager
def _opened(path: str, budget: Budget | None = None) -> Iterator[BoundedFile]:
    """Opens a file; every error, also of the code that reads it, is a `WeightsError`.

    Args:
      path: of the file.
      budget: shared with other files; None: that of a file of this size.
    """
    try:
        size = check_regular(path)
        with open(path, "rb") as stream:
            yield BoundedFile(path, stream, 0, size, budget or Budget.of_file(size))
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
    if reason := mistaken_for_weights(head, file.path):
        raise file.fail(reason)
    if head.startswith(b"PK"):
        entries = members(file)
        if WEIGHTS_MEMBER in entries:
            return "Keras (.keras)", lambda: read_keras_zip(entries)
        if sum(map(is_torch_pickle, entries)) == 1:
            return "PyTorch", lambda: read_torch_zip(file, entries)
        if entries and all(name.endswith(".npy") for name in entries):
            return "NumPy (.npz)", lambda: read_npz(file, entries)
        raise file.fail(what_the_archive_is(entries))
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


def _with_plain_names(file: BoundedFile, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays under the names that an unwrapped model in a current PyTorch has."""
    result: dict[str, np.ndarray] = {}
    for name, array in flax_states.variables(file.path, arrays).items():
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        plain = _OLD_NAME.sub(r"\1\2", plain)
        if not 0 < len(plain) <= MAX_NAME or not plain.isprintable():
            raise file.fail(f"a tensor's name is empty, too long or not printable: {shown(name)}")
        if plain in result:
            raise file.fail(f"it appears twice, also as {shown(plain)}; save it once", name)
        result[plain] = array
    result.pop("n_averaged", None)  # The step counter of PyTorch's AveragedModel is not a weight.
    return result
