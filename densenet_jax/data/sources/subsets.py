"""Subsets of a data set for transfer and few-shot learning: some classes, some examples of each."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import Arrays, DataError, Source

READ_TOGETHER = 1024  # records read at once when the labels must be read from the records


def choose(source: Source, classes: Sequence[str] = (), per_class: int = 0) -> Source:
    """Returns a source with some of the classes and examples, in their original order.

    Args:
      source: the whole split.
      classes: names of the classes to keep, which become labels 0, 1, ... in this order; of several
        labels or numbers, those to keep for every example; (): all.
      per_class: number of examples of each class to keep, the first ones of the split; 0: all.

    Raises:
      DataError: a class is unknown, named twice, or has too few examples, or examples do not have
        one class each.
    """
    if not classes and not per_class:
        return source
    names = tuple(classes) or source.class_names
    unknown = [name for name in names if name not in source.class_names]
    if unknown:
        raise DataError(
            f"data.classes names {unknown[0]!r}, which {source.name} does not have; its classes "
            f"are {', '.join(source.class_names[:20])}{', ...' * (source.num_classes > 20)}."
        )
    if len(set(names)) < len(names):
        raise DataError(
            f"data.classes names a class twice: {', '.join(names)}. Name each class once."
        )
    numbers = [source.class_names.index(name) for name in names]
    found = labels(source)
    if source.task != "classification":
        if per_class:
            raise DataError(
                f"data.examples_per_class={per_class} needs one class for each example, but the "
                f"task is {source.task}; set it to 0."
            )
        if np.isnan(found[:, numbers]).all():
            raise DataError(
                f"{source.name} has no known label of {', '.join(names)}; change data.classes."
            )
        title = f"{source.name}, {len(names)} of {source.num_classes} labels"
        rows = np.arange(len(source))
        return _part(source, rows, found[:, numbers], names, title)
    new_label = np.full(source.num_classes, -1, np.int32)
    new_label[numbers] = np.arange(len(names))
    renamed = new_label[found]
    rows_of = [np.flatnonzero(renamed == label)[: per_class or None] for label in range(len(names))]
    for name, own in zip(names, rows_of, strict=True):
        if len(own) < max(per_class, 1):
            raise DataError(
                f"{source.name} has {len(own)} examples of {name!r}, fewer than the "
                f"{max(per_class, 1)} needed; reduce data.examples_per_class, or remove the class "
                "from data.classes."
            )
    rows = np.sort(np.concatenate(rows_of))
    title = f"{source.name}, {len(rows)} examples of {len(names)} classes"
    part = _part(source, rows, renamed[rows], names, title)
    if source.accepted is None:
        return part
    accepted = functools.partial(_accepted, source.accepted, rows, new_label)
    return dataclasses.replace(part, accepted=accepted)


def _part(
    source: Source, rows: np.ndarray, new_labels: np.ndarray, names: tuple[str, ...], title: str
) -> Source:
    """Returns the examples `rows` [M] of a source, with new labels [M] or [M, L]."""
    groups = None if source.groups is None else Column.of(source.groups).take(rows)
    return dataclasses.replace(
        source,
        examples=_take(source.examples, rows, new_labels),
        class_names=names,
        name=title,
        accepted=None,
        groups=groups,
        columns={name: Column.of(cells).take(rows) for name, cells in source.columns.items()},
    )


def _accepted(
    accepted: Callable[[], Sequence[Sequence[int]]], rows: np.ndarray, new_label: np.ndarray
) -> list[list[int]]:
    """Returns the right labels of the examples `rows` by their new numbers, without those left out.

    Args:
      accepted: returns those of all examples.
      rows: int [M].
      new_label: of each class, -1 if it is left out.
    """
    sets = accepted()
    return [[int(new) for new in new_label[list(sets[row])] if new >= 0] for row in rows]


def labels(source: Source) -> np.ndarray:
    """Returns the labels of all examples, [N] or [N, L]; reads the whole split if necessary."""
    known = getattr(source.examples, "labels", None)
    if known is not None:
        return np.asarray(known)
    many, count = getattr(source.examples, "__getitems__", None), len(source)
    if many is None:
        return np.array([source.examples[i]["label"] for i in range(count)])
    parts = (range(i, min(i + READ_TOGETHER, count)) for i in range(0, count, READ_TOGETHER))
    return np.array([example["label"] for part in parts for example in many(list(part))])


def pools(source: Source) -> tuple[np.ndarray, ...]:
    """Returns the numbers of the examples of each class, int64 [n] each, for balanced batches.

    With several labels there is a pool for each label that is present, and one of the examples
    without any, if there are some.

    Raises:
      DataError: a class or label has no examples, or the labels are numbers.
    """
    found = labels(source)
    if source.task == "classification":
        rows = [np.flatnonzero(found == label) for label in range(source.num_classes)]
    elif source.task == "multilabel":
        rows = [np.flatnonzero(column == 1) for column in found.T]
    else:
        raise DataError("data.balanced needs classes or labels, but the labels are numbers.")
    empty = [name for name, own in zip(source.class_names, rows, strict=True) if not len(own)]
    if empty:
        raise DataError(
            f"data.balanced: {source.name} has no examples of {', '.join(empty[:5])}"
            f"{', ...' * (len(empty) > 5)}; choose the others with data.classes."
        )
    if source.task == "multilabel":
        none = np.flatnonzero((found != 1).all(axis=1))
        rows += [none] if len(none) else []
    return tuple(rows)


def take(source: Source, rows: np.ndarray) -> Source:
    """Returns the examples `rows` [M] of a split; only their labels are read."""
    known = getattr(source.examples, "labels", None)
    if known is None:
        found = np.array([source.examples[int(row)]["label"] for row in rows])
    else:
        found = np.asarray(known)[rows]
    return _part(source, rows, found, source.class_names, source.name)


def _take(
    examples: Sequence[dict[str, Any]], rows: np.ndarray, new_labels: np.ndarray
) -> Sequence[dict[str, Any]]:
    """Returns the examples `rows` [M], with the labels `new_labels`, [M] or [M, L]."""
    if isinstance(examples, Arrays):
        bad = None if examples.bad is None else examples.bad[rows]
        return Arrays(examples.images[rows], new_labels, bad)
    if isinstance(examples, Files):
        return examples.take(rows, new_labels)
    return _Chosen(examples, rows, new_labels)


class _Chosen(Sequence[dict[str, Any]]):
    """Some of the examples with new numbers and labels: example i is `examples[rows[i]]`."""

    # Any, because a sequence of examples may have more methods: see `Source.examples`.
    def __init__(self, examples: Any, rows: np.ndarray, new_labels: np.ndarray):
        self.examples, self.rows, self.labels = examples, rows, new_labels

    def __len__(self) -> int:
        return len(self.rows)

    def _label(self, i: int) -> Any:
        label = self.labels[i]
        return label if label.ndim else int(label)

    def __getitem__(self, i: Any) -> Any:
        return {**self.examples[int(self.rows[i])], "label": self._label(i)}

    def __getitems__(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        rows = [int(self.rows[i]) for i in numbers]
        many = getattr(self.examples, "__getitems__", None)
        found = many(rows) if many else [self.examples[row] for row in rows]
        return [
            {**example, "label": self._label(i)} for i, example in zip(numbers, found, strict=True)
        ]
