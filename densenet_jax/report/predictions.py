"""A model's predictions for all examples of a split, stored in predictions.npz."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from densenet_jax import atomic_files
from densenet_jax.evaluation import per_example
from densenet_jax.report import stored_arrays
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import Task
from densenet_jax.training.eval_loop import Answers, gather
from densenet_jax.training.rundir import bounded_files

logger = logging.getLogger(__name__)
FILE = "predictions.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for N examples, with pictures of P of them.

    Attributes:
      index: the examples' positions in the split, int [N].
      labels: int [N].
      classes: the likeliest classes, likeliest first, int [N, k].
      probabilities: of `classes`, float32 [N, k].
      own: the probability of the label, float32 [N].
      class_names: in label order, [num_classes].
      step: of the checkpoint.
      data: name of the data set and the split, "digits/test".
      shown: the examples with pictures, as positions in the arrays above, int [P].
      pictures: of these examples, uint8 [P, h, w, C].
      maps: class activation maps of their predicted classes, float32 [P, h', w'].
      calibrated: the split on which the probabilities were calibrated; "": they were not.
      columns: groups and other columns of the examples, see `per_example.columns`, {key: str [N]}.
    """

    index: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    own: np.ndarray
    class_names: np.ndarray
    step: int = 0
    data: str = ""
    shown: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    pictures: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8)
    )
    maps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))
    calibrated: str = ""
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the label, bool [N]."""
        return self.classes[:, 0] == self.labels

    @property
    def in_top5(self) -> np.ndarray:
        """Whether the label is among the stored classes (the likeliest five), bool [N]."""
        return (self.classes == self.labels[:, None]).any(1)

    def surest_mistakes(self, count: int) -> np.ndarray:
        """Returns the positions of the `count` mistakes with the highest probability, in order."""
        rows = np.flatnonzero(~self.correct)
        return rows[np.argsort(-self.probabilities[rows, 0], kind="stable")][:count]

    def least_sure_hits(self, count: int) -> np.ndarray:
        """Returns the positions of the `count` hits with the lowest probability, in order."""
        rows = np.flatnonzero(self.correct)
        return rows[np.argsort(self.probabilities[rows, 0], kind="stable")][:count]


def answers(
    model: nn.Module,
    variables: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, jax.Array]],
    task: Task,
    outputs: Outputs | None = None,
) -> list[Answers]:
    """Returns `Task.answers` of each batch, on the devices.

    Args:
      model: the network.
      variables: {"params": ..., "batch_stats": ...} of the model.
      preprocess: maps uint8 images [B, H, W, C] to normalised ones; part of the compiled step.
      batches: {"image": [B, H, W, C], "label": [B] or [B, L], "mask": bool [B]} from
        `training.batches.eval_batches`, from the first example of the split on.
      task: what the model was trained for.
      outputs: what its outputs mean, with calibration; None: without it.
    """

    @jax.jit
    def predict(variables: Any, batch: dict[str, jax.Array]) -> Answers:
        logits: Any = model.apply(variables, preprocess(batch["image"]))
        return task.answers(logits, batch["label"], batch["mask"], outputs)

    # Results stay on the device until the end, so that the loop does not wait for them.
    return [predict(variables, batch) for batch in batches]


def collect(
    model: nn.Module,
    variables: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, jax.Array]],
    class_names: Iterable[str],
    *,
    task: Task,
    **about: Any,
) -> Predictions:
    """Returns the predictions of a classifier for all examples of `batches` whose mask is True.

    Args:
      model: as of `answers`.
      variables: as of `answers`.
      preprocess: as of `answers`.
      batches: as of `answers`.
      class_names: in label order.
      task: as of `answers`.
      **about: further fields, see `merge`.
    """
    found = answers(model, variables, preprocess, batches, task)
    return merge(found, class_names, **about)


def merge(
    answers: Iterable[dict[str, jax.Array]],
    class_names: Iterable[str],
    **about: Any,
) -> Predictions:
    """Returns predictions from the results of `Task.answers` for all batches of a split, in order.

    Args:
      answers: {"mask": bool [B], "labels": [B], "classes": [B, k], "probabilities": [B, k], "own":
        [B]} of each batch; examples whose mask is False are left out.
      class_names: in label order.
      **about: further fields, such as "step" and "data".
    """
    names = np.array(list(class_names), dtype=str)
    fields: dict[str, Any] = gather(answers)
    return Predictions(class_names=names, **fields, **about)


def save(predictions: Predictions, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes predictions.npz into a run's directory atomically; returns its path."""
    path = pathlib.Path(workdir) / FILE
    arrays = {key: value for key, value in vars(predictions).items() if key != "columns"}
    with atomic_files.replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, **predictions.columns)
    return path


def load(workdir: str | pathlib.Path) -> Predictions | None:
    """Returns a run's predictions; None if there are none.

    Predictions that cannot be read, or do not fit together, are left out with a warning.
    """
    path = pathlib.Path(workdir) / FILE
    try:
        found: dict[str, Any] = dict(bounded_files.read_npz(path))
        found["step"] = int(found["step"])
        found |= {key: str(found[key]) for key in ("data", "calibrated") if key in found}
        found["columns"] = per_example.pop_columns(found, len(found["labels"]))
        predictions = Predictions(**found)
        _check(predictions)
        return predictions
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as e:
        logger.warning("%s cannot be read and is left out: %s.", path, e)
        return None


def _check(found: Predictions) -> None:
    """Checks the shapes, types and ranges of predictions from a file.

    Raises:
      ValueError: one is not as the class describes it.
    """
    count, classes = len(found.index), len(found.class_names)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("labels", "own"), (count,)),
        **dict.fromkeys(("classes", "probabilities"), (count, found.classes.shape[-1])),
    }
    ranges = {"labels": classes, "classes": classes}
    stored_arrays.check(found, shapes, {"probabilities": "f", "own": "f"}, ranges)
    if not found.classes.shape[-1] or not all(
        np.isfinite(v).all() for v in (found.probabilities, found.own)
    ):
        raise ValueError("its probabilities are not numbers")
