"""A model's predictions of several labels or of numbers, stored in predictions.npz."""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from densenet_jax import atomic_files
from densenet_jax.evaluation import per_example
from densenet_jax.report import stored_arrays
from densenet_jax.report.predictions import FILE
from densenet_jax.training.rundir import bounded_files

logger = logging.getLogger(__name__)
NOUNS = {"multilabel": "probabilities", "regression": "values"}  # key of the estimates in the file


@dataclasses.dataclass(frozen=True, eq=False)
class Estimates:
    """Probabilities of L labels, or L numbers, for N examples, with pictures of P of them.

    Attributes:
      task: "multilabel" or "regression".
      index: the examples' positions in the split, int [N].
      labels: float32 [N, L]: 1 present, 0 absent; or the true numbers. NaN: unknown.
      values: the model's probabilities or numbers, float32 [N, L].
      class_names: of the labels or numbers, [L].
      step: of the checkpoint.
      data: name of the data set and the split, "chest/test".
      thresholds: of several labels, the probability from which on a label is predicted, float64
        [L]; [0] for numbers.
      calibrated: the split on which probabilities and thresholds were calibrated; "": they were
        not.
      shown: the examples with pictures, as positions in the arrays above, int [P].
      shown_for: the label or number for which each of them is shown, int [P].
      pictures: of these examples, uint8 [P, h, w, C].
      maps: regions that support this label or raise this number, float32 [P, h', w'].
      columns: groups and other columns of the examples, see `per_example.columns`, {key: str [N]}.
    """

    task: str
    index: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    class_names: np.ndarray
    step: int = 0
    data: str = ""
    thresholds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    calibrated: str = ""
    shown: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    shown_for: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    pictures: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8)
    )
    maps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the labels or numbers."""
        return self.class_names.tolist()

    @property
    def groups(self) -> list[str] | None:
        """The group of each example, such as its patient; None: unknown."""
        found = self.columns.get(per_example.GROUP)
        return None if found is None else found.tolist()

    @property
    def not_finite(self) -> int:
        """Number of examples with an answer that is not a finite number."""
        return int((~np.isfinite(self.values)).any(axis=1).sum())


def save(found: Estimates, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes predictions.npz into a run's directory atomically; returns its path."""
    arrays: dict[str, Any] = dict(vars(found))
    arrays |= arrays.pop("columns")
    arrays[NOUNS[arrays.pop("task")]] = arrays.pop("values")
    path = pathlib.Path(workdir) / FILE
    with atomic_files.replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def load(workdir: str | pathlib.Path, task: str) -> Estimates | None:
    """Returns a run's answers; None if there are none of this task.

    Answers that cannot be read, or do not fit together, are left out with a warning.
    """
    path = pathlib.Path(workdir) / FILE
    try:
        arrays: dict[str, Any] = dict(bounded_files.read_npz(path))
        arrays["values"] = arrays.pop(NOUNS[task])
        arrays["columns"] = per_example.pop_columns(arrays, len(arrays["labels"]))
        arrays |= {key: str(arrays[key]) for key in ("data", "calibrated")}
        arrays["step"] = int(arrays["step"])
        found = Estimates(task=task, **arrays)
        _check(found)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as e:
        logger.warning("%s cannot be read and is left out: %s.", path, e)
        return None


def _check(found: Estimates) -> None:
    """Checks the shapes, types and ranges of answers from a file.

    Raises:
      ValueError: one is not as the class describes it.
    """
    count, labels = len(found.index), len(found.class_names)
    shapes: dict[str, tuple[int, ...]] = {
        "thresholds": (labels if found.task == "multilabel" else 0,),
        "shown_for": (len(found.shown),),
        **dict.fromkeys(("labels", "values"), (count, labels)),
    }
    kinds = dict.fromkeys(("labels", "values", "thresholds"), "f")
    stored_arrays.check(found, shapes, kinds, {"shown_for": labels})
    known = found.labels[~np.isnan(found.labels)]
    values = (0, 1) if found.task == "multilabel" else known[np.isfinite(known)]
    if not labels or not np.isin(known, values).all() or not np.isfinite(found.thresholds).all():
        raise ValueError("its labels or thresholds are not those of the task")
