"""Some classes of a data set, or a few examples of each: for transfer and few-shot learning."""

from collections.abc import Sequence

import numpy as np

from densenet_jax.data.sources.source import Arrays, DataError, Source

TOGETHER = 1024  # records read at a time where labels are known only from them


def choose(source: Source, classes: Sequence[str] = (), per_class: int = 0) -> Source:
    """Returns a source with some of the examples, numbered anew, in their order.

    Args:
      classes: names of classes, which become labels 0, 1, ... in this order; (): all classes.
      per_class: of every class only the first so many examples of the split; 0: all.

    Raises:
      DataError: there is no such class, one is named twice, or it has too few examples.
    """
    if not classes and not per_class:
        return source
    names = tuple(classes) or source.class_names
    strangers = [name for name in names if name not in source.class_names]
    if strangers:
        raise DataError(
            f"data.classes names {strangers[0]!r}, which {source.name} has not; its classes are "
            f"{', '.join(source.class_names[:20])}{', ...' * (source.num_classes > 20)}."
        )
    if len(set(names)) < len(names):
        raise DataError(f"data.classes names a class twice: {', '.join(names)}.")
    found = labels(source)
    new_label = np.full(source.num_classes, -1, np.int32)
    new_label[[source.class_names.index(name) for name in names]] = np.arange(len(names))
    renamed = new_label[found]
    rows = [np.flatnonzero(renamed == label)[: per_class or None] for label in range(len(names))]
    for name, own in zip(names, rows, strict=True):
        if len(own) < max(per_class, 1):
            raise DataError(
                f"{source.name} has {len(own)} examples of {name!r}, fewer than the "
                f"{max(per_class, 1)} that data.examples_per_class and data.classes ask for."
            )
    rows = np.sort(np.concatenate(rows))
    title = f"{source.name}, {len(rows)} examples of {len(names)} classes"
    return Source(_take(source.examples, rows, renamed[rows]), names, title)


def labels(source: Source) -> np.ndarray:
    """Returns the labels of all examples, int [N]; reads the split where it must."""
    known = getattr(source.examples, "labels", None)
    if known is not None:
        return np.asarray(known)
    many, count = getattr(source.examples, "__getitems__", None), len(source)
    if many is None:
        return np.array([source.examples[i]["label"] for i in range(count)])
    parts = (range(i, min(i + TOGETHER, count)) for i in range(0, count, TOGETHER))
    return np.array([example["label"] for part in parts for example in many(list(part))])


def _take(examples: Sequence, rows: np.ndarray, new_labels: np.ndarray) -> Sequence:
    if isinstance(examples, Arrays):
        bad = None if examples.bad is None else examples.bad[rows]
        return Arrays(examples.images[rows], new_labels, bad)
    kind = _ChosenFiles if hasattr(examples, "path") else _Chosen
    return kind(examples, rows, new_labels)


class _Chosen(Sequence):
    """Some of the examples, under new numbers and labels."""

    def __init__(self, examples: Sequence, rows: np.ndarray, new_labels: np.ndarray):
        self.examples, self.rows, self.labels = examples, rows, new_labels

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {**self.examples[int(self.rows[i])], "label": int(self.labels[i])}

    def __getitems__(self, numbers):
        rows = [int(self.rows[i]) for i in numbers]
        many = getattr(self.examples, "__getitems__", None)
        found = many(rows) if many else [self.examples[row] for row in rows]
        return [
            {**example, "label": int(self.labels[i])}
            for i, example in zip(numbers, found, strict=True)
        ]


class _ChosenFiles(_Chosen):
    """The same of files, which are named in messages."""

    def path(self, i: int) -> str:
        return self.examples.path(int(self.rows[i]))
