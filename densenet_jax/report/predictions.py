"""What a model predicts for every example of a split: made once, kept in predictions.npz."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from densenet_jax.tasks.task import Task

FILE = "predictions.npz"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for N examples, with the pictures of some.

    Attributes:
      index: the examples' numbers in the split, int [N].
      labels: int [N].
      classes: the likeliest classes, likeliest first, int [N, k].
      probabilities: theirs, float32 [N, k].
      own: the probability of the label, float32 [N].
      class_names: in label order.
      step: of the checkpoint.
      data: name of the data set and the split.
      shown: rows whose pictures are kept, int [P].
      pictures: uint8 [P, h, w, C].
      maps: class activation maps of the predicted classes, float32 [P, h', w'].
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

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the label, bool [N]."""
        return self.classes[:, 0] == self.labels

    @property
    def in_top5(self) -> np.ndarray:
        return (self.classes == self.labels[:, None]).any(1)

    def surest_mistakes(self, count: int) -> np.ndarray:
        """Returns rows, the surest first."""
        rows = np.flatnonzero(~self.correct)
        return rows[np.argsort(-self.probabilities[rows, 0], kind="stable")][:count]

    def least_sure_hits(self, count: int) -> np.ndarray:
        """Returns rows, the least sure first."""
        rows = np.flatnonzero(self.correct)
        return rows[np.argsort(self.probabilities[rows, 0], kind="stable")][:count]


def collect(
    model: nn.Module,
    variables: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, jax.Array]],
    class_names: Iterable[str],
    *,
    task: Task,
    step: int = 0,
    data: str = "",
) -> Predictions:
    """Returns the predictions for all examples of `batches` whose mask is True.

    Args:
      preprocess: maps uint8 images [B, H, W, C] to normalised ones, inside the compiled step.
      batches: as `data.pipeline.eval_batches` makes them, from the first example on.
    """

    @jax.jit
    def predict(variables, batch):
        logits = model.apply(variables, preprocess(batch["image"]))
        return task.answers(logits, batch["label"], batch["mask"])

    # Results stay on the device until the end: the loop never waits for them.
    answers = [predict(variables, batch) for batch in batches]
    return merge(answers, class_names, step=step, data=data)


def merge(
    answers: Iterable[dict[str, jax.Array]],
    class_names: Iterable[str],
    *,
    step: int = 0,
    data: str = "",
) -> Predictions:
    """Returns the predictions of `Task.answers` of all batches of a split, in order."""
    parts = [_on_host(answer) for answer in answers]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mask = merged.pop("mask")
    return Predictions(
        index=np.flatnonzero(mask),
        class_names=np.array(list(class_names), dtype=str),
        step=step,
        data=data,
        **{name: array[mask] for name, array in merged.items()},
    )


def _on_host(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return jax.device_get(result)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(result, tiled=True)


def save(predictions: Predictions, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes predictions.npz into a run's directory, whole or not at all; returns its path."""
    path = pathlib.Path(workdir) / FILE
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **vars(predictions))
    os.replace(temporary, path)
    return path


def load(workdir: str | pathlib.Path) -> Predictions | None:
    """Returns a run's predictions; None if there are none, or they cannot be read."""
    try:
        with np.load(pathlib.Path(workdir) / FILE, allow_pickle=False) as file:
            arrays = dict(file)
        arrays["step"], arrays["data"] = int(arrays["step"]), str(arrays["data"])
        return Predictions(**arrays)
    except Exception:  # a damaged zip file makes NumPy raise nearly anything
        return None
