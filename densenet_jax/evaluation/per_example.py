"""What a model answers for every example of a split, kept in files for other programs.

Both files are NumPy archives without pickled objects.
"""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from densenet_jax.evaluation.scores import Scores
from densenet_jax.evaluation.splits import Assessed
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training.rundir import bounded_files

FILE = "evaluation.npz"  # beside evaluation.json
CALIBRATION = "calibration.npz"  # beside calibration.json


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
    if source.groups is not None:
        arrays["group"] = np.array([str(source.groups[i]) for i in rows], str)
    for name, column in source.columns.items():
        arrays[f"column_{name}"] = np.array([str(column[i]) for i in rows], str)
    _write(folder / FILE, arrays)


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
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)
