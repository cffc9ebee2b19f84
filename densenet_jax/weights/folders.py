"""Finds the weight file in a folder, and refuses the folders of formats that cannot be read."""

import os

from densenet_jax.weights.files import INDEXES
from densenet_jax.weights.hub import WEIGHTS_FILES
from densenet_jax.weights.readers.bounded_file import WeightsError

CHECKPOINTS = "checkpoints"  # a folder with this subfolder is the directory of a run
KERAS_PRESET = "model.weights.h5"  # in large presets, model.weights.json and its shards
SUFFIXES = (
    *(".safetensors", ".pth", ".pt", ".bin", ".h5", ".hdf5", ".keras", ".ckpt", ".npz"),
    *(".msgpack", ".pkl", ".tar"),
)
# A file that only one format has -> the reason why its folder cannot be read.
_FOREIGN = {
    ".metadata": "it is a distributed checkpoint of PyTorch; convert it with "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} weights.pth",
    "saved_model.pb": "it is a SavedModel of TensorFlow; load it there and save model.keras with "
    "model.save",
    "checkpoint": "it is a checkpoint of TensorFlow; load it there and save it with "
    "model.save_weights('x.weights.h5')",
    "_METADATA": "it is a checkpoint of Orbax; restore it there and save the variables with "
    "flax.serialization.to_bytes as x.msgpack",
    "_CHECKPOINT_METADATA": "it is a checkpoint of Orbax; restore it there and save the variables "
    "with flax.serialization.to_bytes as x.msgpack",
}


def is_run(source: str | os.PathLike[str]) -> bool:
    """Returns whether a source is the directory of a run, that is a folder with checkpoints."""
    return os.path.isdir(os.path.join(source, CHECKPOINTS))


def weights_in(folder: str) -> str:
    """Returns the path of the weight file in a folder.

    That is the file with a usual name, such as `model.safetensors`, or else the only index of
    weights in several files, or else the only file with the suffix of weights.

    Raises:
      WeightsError: there is no weight file, there are several, or the folder has another format.
    """
    files = sorted(os.listdir(folder))
    for name in (*WEIGHTS_FILES, KERAS_PRESET):
        if name in files:
            return os.path.join(folder, name)
    indexes = [name for name in files if name.endswith(INDEXES)]
    if len(indexes) == 1:
        return os.path.join(folder, indexes[0])
    folders = [path for name in files if os.path.isdir(path := os.path.join(folder, name))]
    steps = [path for path in folders if os.path.basename(path).isdecimal()]  # of Orbax
    inside = {*files, *(os.listdir(steps[-1]) if steps else ())}
    for name, reason in _FOREIGN.items():
        if name in inside:
            raise WeightsError(f"{folder}: {reason.format(folder)}.")
    found = [name for name in files if name.lower().endswith(SUFFIXES)]
    if len(found) == 1:
        return os.path.join(folder, found[0])
    some = ", ".join((found or files)[:5]) or "no files"
    reason = (
        f"the folder has {len(found)} weight files" if found else "the folder has no weight file"
    )
    raise WeightsError(
        f"{folder}: {reason} ({some}), neither {' nor '.join(WEIGHTS_FILES)} nor {CHECKPOINTS}/; "
        "pass the weight file itself."
    )


def head_of(path: str) -> str | None:
    """Returns the file with the classifier of a preset of KerasHub; None: there is none.

    Args:
      path: the weight file, in which KerasHub writes the body alone.
    """
    head = os.path.join(os.path.dirname(path), "task.weights.h5")
    return head if is_preset(path) and os.path.isfile(head) else None


def is_preset(path: str) -> bool:
    """Returns whether a weight file has the name of one in a preset of KerasHub."""
    return os.path.basename(path) in (KERAS_PRESET, KERAS_PRESET.replace(".h5", ".json"))
