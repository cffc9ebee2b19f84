"""The files with a model's predictions for every example of a split, for other programs.

Both files are NumPy archives without pickled objects.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.data.sources.source import Source
from densenet_jax.evaluation.scores import Scores
from densenet_jax.evaluation.splits import Assessed
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training.rundir import bounded_files

FILE = "evaluation.npz"  # beside evaluation.json
CALIBRATION = "calibration.npz"  # beside calibration.json
GROUP, COLUMN = "group", "column_"  # the key of the groups, and what those of columns begin with


def save(folder: pathlib.Path, own: Assessed, outputs: Outputs) -> None:
    """Writes evaluation.npz: the answers for every example that was evaluated.

    Its arrays are "index" (the number in the split, int [N]), "id" (the file, or the number and the
    split, as text [N]), "label" ([N], or [N, L] with NaN where one is unknown), "logits" [N, C],
    "probabilities" (of regression "values") float32 [N, C], "loss" [N], "class_names" [C], and if
    they are known "group" [N] and the other columns of the table, as "column_NAME" [N].

    Args:
      folder: where to write.
      own: the result of the evaluation.
      outputs: what the logits mean, with calibration.
    """
    found, source = own.scores, own.source
    rows = found["index"].tolist()
    arrays: dict[str, Any] = {
        "index": found["index"],
        "id": np.array([source.describe(i) for i in rows], str),
        **{key: found[key] for key in ("label", "logits", "loss")},
        outputs.noun: np.asarray(outputs(jnp.asarray(found["logits"])), np.float32),
        "class_names": np.array(source.class_names, str),
    }
    _write(folder / FILE, arrays | columns(source, found["index"]))


def columns(source: Source, index: np.ndarray) -> dict[str, np.ndarray]:
    """Returns groups and other columns of examples, {"group", "column_NAME": str [N]}.

    Args:
      source: the split.
      index: numbers of the examples, int [N].
    """
    known = {f"{COLUMN}{name}": column for name, column in source.columns.items()}
    if source.groups is not None:
        known[GROUP] = source.groups
    return {
        key: np.array([str(values[i]) for i in index.tolist()], str)
        for key, values in known.items()
    }


def pop_columns(arrays: dict[str, Any], examples: int) -> dict[str, np.ndarray]:
    """Removes the arrays of `columns` from those of a file, and returns the ones that fit.

    Args:
      arrays: of the file.
      examples: their number.
    """
    keys = [key for key in arrays if key == GROUP or key.startswith(COLUMN)]
    found = {key: arrays.pop(key) for key in keys}
    return {k: v for k, v in found.items() if v.shape == (examples,) and v.dtype.kind == "U"}


def save_logits(workdir: str, found: Scores, step: int) -> None:
    """Writes calibration.npz: {"logits" [N, C], "label" [N] or [N, L], "step"}.

    Args:
      workdir: the run's directory.
      found: the scores of the split that the run was calibrated on.
      step: of the checkpoint.
    """
    arrays = {"logits": found["logits"], "label": found["label"], "step": np.int64(step)}
    _write(pathlib.Path(workdir) / CALIBRATION, arrays)


def load_logits(workdir: str, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (logits, labels) of calibration.npz; None if it is missing or of another step.

    Args:
      workdir: the run's directory.
      step: of the checkpoint.
    """
    try:
        found = bounded_files.read_npz(pathlib.Path(workdir) / CALIBRATION)
        return (found["logits"], found["label"]) if int(found["step"]) == step else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    with atomic_files.replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
