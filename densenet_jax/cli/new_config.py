"""Writes a commented configuration for the data that `found_data` found."""

import math
import textwrap

import jax
import numpy as np

from densenet_jax.cli.found_data import FoundData
from densenet_jax.terminal import printable

WEIGHTS = "densenet121.ra_in1k"
SMALL = 48  # pixels: images up to this size can train a small network from the start ...
ENOUGH = 5000  # ... if there are this many of them
RARE = 5.0  # times more examples in the most frequent class: from here on classes count alike
FEW = 100  # examples, below which scores say little
# Examples of a run and its image size: 5 minutes on two slow cores, a few minutes on a GPU.
SHORT, LONG = (6_000, 128), (100_000, 224)


class _Body:
    """The lines of the function `get_config`; comments and values cannot leave their place."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def comment(self, text: str) -> None:
        """Adds a comment, one line whatever characters it has, wrapped at 100 columns."""
        self.lines += [f"    # {part}" for part in textwrap.wrap(printable(text), 92)]

    def set(self, key: str, value: object, comment: str = "") -> None:
        """Adds an assignment, below a comment if there is one."""
        self.comment(comment)
        self.lines.append(f"    config.{key} = {value!r}")


def source_code(found: FoundData, weights: str = "") -> str:
    """Returns the Python source of a configuration.

    Args:
      found: what lies in the folder or table.
      weights: the weights to start from; "": published ones, or none for many small images.
    """
    scratch = not weights and max(found.sizes) <= SMALL and len(found.train) >= ENOUGH
    data = "table" if found.table else "folder"
    base = "cifar10" if scratch else "finetune"
    argument = "cpu30" if scratch else f"{weights or WEIGHTS},{data}"
    body = _Body()
    _add_data(body, found, data)
    _add_labels(body, found)
    _add_images(body, found, scratch)
    _add_training(body, found, scratch)
    lines = "\n".join(body.lines)
    return f"""\
# A configuration for {printable(found.path)},
# written by the command `init` from a look at the data.  Everything here can be changed;
# configs/default.py documents every key.

from densenet_jax.configs import {base}


def get_config():
    config = {base}.get_config({argument!r})
{lines}
    return config
"""


def _add_data(body: _Body, found: FoundData, name: str) -> None:
    """Adds where the images and their labels are."""
    columns, train, validation = found.columns, len(found.train), len(found.validation)
    few = " Scores of so few are uncertain; --folds=5 uses all." if validation < FEW else ""
    body.set(
        "data.name", name, f"{train:,} images to train on, {validation:,} to evaluate on.{few}"
    )
    body.set("data.data_dir", str(found.path))
    body.set("data.eval_split", "validation")
    if not columns.split_column:
        comment = "Share of the validation split, if the data do not have splits of their own."
        body.set("data.holdout", found.holdout, comment)
    if found.table:
        body.set("data.path_column", columns.path_column)
        body.set("data.label_columns", columns.label_columns)
    if columns.split_column:
        body.set("data.split_column", columns.split_column)
    if columns.group_column:
        body.set("data.group_column", columns.group_column, "No group is in both splits.")
        return
    how, key = "their paths say", r"group = r'(patient\d+)'"
    if found.table:
        how, key = "a column says", "group_column = 'patient'"
    body.comment(
        "Several images of one patient, object or place must not be in both splits, or the scores "
        f"are too good. If {how} which images belong together, set config.data.{key}"
    )


def _add_labels(body: _Body, found: FoundData) -> None:
    """Adds the task, and what its labels mean."""
    task, names = found.train.task, found.train.class_names
    counts = found.counts or [None] * len(names)
    kinds = {
        "classification": f"{len(names)} classes, and their images for training",
        "multilabel": f"{len(names)} labels, and the images for training that have them",
        "regression": "numbers to predict",
    }
    shown = [name if n is None else f"{name} {n:,}" for name, n in zip(names, counts, strict=True)]
    body.set("task", task, textwrap.shorten(f"{kinds[task]}: {', '.join(shown)}.", 400))
    if task == "multilabel":
        body.set(
            "data.uncertain",
            found.columns.uncertain,
            "A blank cell or -1: 'ignore' (unknown), 'zero' (absent) or 'one' (present).",
        )
    if found.imbalance > RARE:
        body.set(
            "class_weights",
            "auto",
            f"The most frequent has {found.imbalance:.0f} times the examples of the rarest: rare "
            "ones get more weight in the loss.",
        )
        if task == "classification":
            body.set("best_metric", "balanced_accuracy", "All classes contribute alike to it.")


def _add_images(body: _Body, found: FoundData, scratch: bool) -> None:
    """Adds what the images are like."""
    kind, (height, width) = found.statistics.kind, found.sizes
    body.set(
        "data.channels",
        found.channels,
        f"Height and width are {height} and {width} pixels (medians); channels of {kind.dtype}.",
    )
    low, high = found.statistics.ends
    if kind.dtype != "uint8":
        body.set("data.dtype", kind.dtype, "Their type, and the numbers that become 0 and 1.")
        body.set("data.value_range", (low, high))
    if scratch or found.channels != 3 or kind.dtype != "uint8":
        mean = (found.statistics.mean - low) / (high - low)
        body.set("data.mean", _rounded(mean), "Measured on the training images.")
        body.set("data.std", _rounded(found.statistics.std / (high - low)))
    if scratch:
        body.set("data.image_size", max(32, 8 * math.ceil(max(found.sizes) / 8)))
    else:
        comment = "The weights saw 224 pixels or more; smaller images train faster."
        body.set("data.image_size", _length()[1], comment)
    if height != width or not kind.square:
        comment = "Evaluation sees all of an image: 'pad' adds bands, 'crop' would cut edges off."
        body.set("data.fit", "pad", comment)
    comment = "False, if left and right differ in meaning: text, or the side of a body."
    body.set("augment.flip", True, comment)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(max(float(f"{v:.4g}"), 1e-6) for v in values)


def _length() -> tuple[int, int]:
    """Returns for how many examples a run trains, and at which image size, on this machine."""
    return SHORT if jax.default_backend() == "cpu" else LONG


def _add_training(body: _Body, found: FoundData, scratch: bool) -> None:
    """Adds how long the run is."""
    if scratch:
        body.comment("The recipe trains a small network from the start: 14 epochs of one cycle.")
        return
    count = len(found.train)
    epochs = min(50, max(3, math.ceil(_length()[0] / count)))
    comment = "Examples in a step; more are faster on a large GPU."
    body.set("batch_size", max(1, min(32, count // 4)), comment)
    body.set("eval_batch_size", min(64, len(found.validation)))
    comment = "More epochs and a larger image_size are more accurate."
    body.set("total_epochs", float(epochs), comment)
    body.set("eval_every_epochs", float(max(1, epochs // 5)), "The best checkpoint is kept.")
