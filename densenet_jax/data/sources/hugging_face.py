"""Data sets of the Hugging Face hub; they need the package `datasets`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_jax.data.reading.files import read_file
from densenet_jax.data.sources.label_features import Feature, Part, parts, unsuitable
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.data.sources.tables import DEFAULT, Columns


class _Rows(Sequence[dict[str, Any]]):
    """The rows of a split as examples, with the images still encoded.

    Attributes:
      rows: a `datasets.Dataset`.
      image: name of the column of images, as {"bytes": bytes or None, "path": str}.
      label: name of the column of classes.
      parts: what converts columns to the labels of another task than classification.
    """

    def __init__(self, rows: Any, image: str, label: str, parts: Sequence[Part] = ()):
        self.rows, self.image, self.label, self.parts = rows, image, label, parts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = self.rows[int(i)]
        image = row[self.image]
        data = image["bytes"]
        if data is None:
            data = read_file(image["path"])
        if not self.parts:
            return {"image": data, "label": int(row[self.label])}
        labels = [part(_values(row[part.feature.key])) for part in self.parts]
        return {"image": data, "label": np.concatenate(labels)}


def _values(cell: Any) -> Sequence[float]:
    """Returns the numbers of a cell, NaN for a missing one."""
    cells = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
    return [math.nan if value is None else value for value in cells]


def hub_dataset(
    name: str,
    split: str,
    data_dir: str = "",
    task: str = "classification",
    columns: Columns = DEFAULT,
) -> Source:
    """Returns a split of a data set of the Hugging Face hub.

    The first column of images is used. The labels are the columns that `columns.label_columns`
    names, if they exist, or else the first column of class labels, or the only column that suits
    another task by its type; a note says which.

    Args:
      name: `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`.
      split: name of the split, or a slice such as `train[:90%]`.
      data_dir: a folder in the repository, or the folder of images for `hf:imagefolder`; "": none.
      task: "classification", "multilabel" or "regression".
      columns: `label_columns` are the columns of labels; `uncertain` is what -1 means.

    Raises:
      DataError: `datasets` is not installed, the data set cannot be loaded, or it has no column of
        images or of labels for the task.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} needs the package datasets; install it: pip install datasets"
        ) from None
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split, data_dir=data_dir or None)
    except Exception as e:  # hub, network and builders have errors of their own
        raise DataError(f"Hugging Face cannot load {path!r}, split {split!r}: {e}") from e
    features = rows.features
    images = [key for key, value in features.items() if isinstance(value, datasets.Image)]
    known = {key: _feature(key, value) for key, value in features.items() if key not in images}
    labels = {key: feature for key, feature in known.items() if feature is not None}
    chosen = [labels[key] for key in columns.label_columns if key in labels]
    if columns.label_columns == DEFAULT.label_columns:
        suitable = [feature for feature in labels.values() if feature.task == task]
        chosen = [f for f in chosen if f.task == task] or suitable or list(labels.values())[:1]
        if len(chosen) > 1 and task != "classification":
            raise DataError(
                f"{name} has several columns for {task}: {', '.join(f.key for f in chosen)}. Name "
                "one or more with --config.data.label_columns."
            )
        chosen = chosen[:1]
    elif len(chosen) < len(columns.label_columns):
        chosen = []
    if not images or not chosen:
        raise DataError(
            f"{name} has the columns {', '.join(features)}; image classification needs a column of "
            "images and one of class labels. Name the labels with --config.data.label_columns, or "
            "choose another data set."
        )
    rows, title = rows.cast_column(images[0], datasets.Image(decode=False)), f"{name} {split}"
    first = chosen[0]
    notes = (f"{title}: the labels are the columns {', '.join(f.key for f in chosen)}",)
    if task == "classification":
        if len(chosen) > 1 or first.task != task:
            several = first._replace(several=True, key=", ".join(f.key for f in chosen))
            raise unsuitable(several if len(chosen) > 1 else first, task, name)
        return Source(_Rows(rows, images[0], first.key), first.names or (), title, notes=notes)
    made = parts(chosen, task, columns.uncertain, name, lambda key: _values(rows[0][key]))
    names = tuple(label for part in made for label in part.names)
    return Source(_Rows(rows, images[0], "", made), names, title, notes=notes, task=task)


def _feature(key: str, value: Any) -> Feature | None:
    """Returns what matters of a column; None if it holds neither classes nor numbers.

    Args:
      key: the column's name.
      value: its type, of the package `datasets`.
    """
    inner = value[0] if isinstance(value, list) and value else getattr(value, "feature", None)
    several = inner is not None
    inner = inner if several else value
    names = getattr(inner, "names", None)
    numeric = str(getattr(inner, "dtype", "")).startswith(("int", "uint", "float", "bool"))
    if names is None and not numeric:
        return None
    names = ("false", "true") if str(getattr(inner, "dtype", "")) == "bool" else names
    length = getattr(value, "length", -1)
    count = 1 if not several else length if length > 0 else None
    return Feature(key, None if names is None else tuple(names), count, several)
