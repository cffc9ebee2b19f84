"""Recognises files that are no weights that can be read, and says what to do with each."""

import os
import re
from collections.abc import Iterable

from densenet_jax.weights.readers.bounded_file import shown

FORMATS = (
    "safetensors, PyTorch (.pth, .pt, .bin), Keras (.h5, .keras), MindSpore (.ckpt), NumPy (.npz), "
    "Flax (.msgpack)"
)


def what_the_archive_is(entries: Iterable[str]) -> str:
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
}
_DATA_OF_TENSORFLOW = re.compile(r"\.data-\d{5}-of-\d{5}$")


def mistaken_for_weights(head: bytes, path: str) -> str | None:
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
