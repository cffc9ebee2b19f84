"""Which split an example belongs to: by name, by a hash (holdout), or by fold (cross-validation).

Folders and tables share this module. A hash of the example's key, or of its group, decides, so an
example stays in its split when others are added or removed, and a group is never divided.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.source import DataError

# Names that people give to a split, in any capitals.
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
NAMED = 5  # classes or groups that a message lists


@dataclasses.dataclass(frozen=True)
class Division:
    """How data without splits are divided into "train" and "validation".

    Attributes:
      holdout: share of the validation split, between 0 and 1; ignored if there are folds.
      folds: number of folds of a cross-validation; 0: holdout.
      fold: number of the fold that is the validation split, from 0.

    Raises:
      DataError: a number is out of range.
    """

    holdout: float = 0.1
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise DataError(f"data.folds is {self.folds}; set it to 2 or more, or to 0 for none.")
        if self.folds and not 0 <= self.fold < self.folds:
            raise DataError(
                f"data.fold is {self.fold}; with data.folds={self.folds} it must be from 0 to "
                f"{self.folds - 1}."
            )
        if self.fold and not self.folds:
            raise DataError(f"data.fold is {self.fold}, but data.folds is 0; set data.folds too.")
        if not self.folds and not 0 < self.holdout < 1:
            raise DataError(f"data.holdout is {self.holdout}; set it to a share between 0 and 1.")

    def __str__(self) -> str:
        if self.folds:
            return f"data.folds={self.folds}, data.fold={self.fold}"
        return f"data.holdout={self.holdout:g}"


def find(split: str, names: Iterable[str], where: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the name among `names` that stands for a split, and notes about the choice.

    Capitals do not matter. Without a validation split the test split takes its place, which a note
    says.

    Args:
      split: "train", "validation", "test", or any other name.
      names: of the splits that exist.
      where: what has these splits, for messages.

    Returns:
      the name, or None if there is no such split; and the notes.

    Raises:
      DataError: several names stand for the split.
    """

    def named(wanted: str) -> str | None:
        aliases = SPLIT_ALIASES.get(wanted, (wanted.lower(),))
        found = [name for name in names if name.lower() in aliases]
        if len(found) > 1:
            raise DataError(f"{where} has {' and '.join(found)}; leave one for the {wanted} split.")
        return found[0] if found else None

    names = list(names)
    found = named(split)
    test = named("test") if split == "validation" else None
    if test is None:
        return found, ()
    if found is None:
        return test, (
            f"{where} has no validation split: {test} chooses the best checkpoint, so its "
            "accuracy is not that of unseen images",
        )
    return found, (
        f"{where}: {found} chooses the best checkpoint; {test} is for "
        f"--config.data.eval_split={test}",
    )


def fractions_of(keys: Sequence[str]) -> np.ndarray:
    """Returns the hash of each relative path, or group, as a number from 0 to 1, float64 [N]."""
    digests = b"".join(
        hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for key in keys
    )
    return np.frombuffer(digests, ">u8").astype(np.float64) / 2**64


def rows_of_part(
    split: str,
    keys: Column,
    labels: np.ndarray,
    class_names: Sequence[str],
    division: Division,
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns which examples of data without splits a split has, and notes about them.

    Every class, or label of several, keeps an example in training: if the hash puts all of them
    into the validation split, the one with the largest hash, and its group, stay.

    Args:
      split: "train" or "validation".
      keys: of all N examples: their groups, or their relative paths.
      labels: int [N]; or float32 [N, L], where 1 is a label that is present.
      class_names: in label order.
      division: the shares.
      where: name of the data, for messages.

    Returns:
      the rows, int [M], and sentences for the start of a run.

    Raises:
      DataError: there is no such split, or it is empty.
    """
    if split not in ("train", "validation"):
        raise DataError(
            f"{where} has no split {split!r}. Data without splits are divided into 'train' and "
            "'validation'; choose one of them (--config.data.eval_split=validation)."
        )
    fractions = fractions_of(keys.values)[keys.codes]
    if division.folds:
        held_out = np.floor(fractions * division.folds).astype(int) == division.fold
    else:
        held_out = fractions < division.holdout
    strata = list(_strata(labels))
    returned = False
    for rows in strata:
        if len(rows) and held_out[rows].all():
            returned = True
            kept = rows[np.argmax(fractions[rows])]
            held_out[keys.codes == keys.codes[kept]] = False
    chosen = np.flatnonzero(held_out if split == "validation" else ~held_out)
    if not len(chosen):
        groups = len(np.unique(keys.codes))
        why = (
            " (every class keeps an example in training, and the hash chose only examples that are "
            "alone in their class)"
        )
        raise DataError(
            f"The {split} split of {where} is empty with {division} and {groups} groups or images"
            f"{why * returned}; choose another share or fold, or name the splits yourself."
        )
    grouped = ", by group" * int(np.bincount(keys.codes).max() > 1)
    notes = [f"the {split} split is a part of {where} ({division}{grouped})"]
    lacking = [
        name
        for name, rows in zip(class_names, strata, strict=False)
        if len(rows) and not held_out[rows].any()
    ]
    if lacking and split == "validation" and len(strata) > 1:
        notes.append(
            f"the validation split has no example of {len(lacking)} of {len(class_names)} classes: "
            f"{', '.join(lacking[:NAMED])}{', ...' * (len(lacking) > NAMED)}"
        )
    return chosen, tuple(notes)


def _strata(labels: np.ndarray) -> Iterable[np.ndarray]:
    """Returns the rows of each class, of each label that is present, or of all examples."""
    if labels.ndim == 1:
        order = np.argsort(labels, kind="stable")
        count = int(labels.max(initial=-1)) + 1
        return np.split(order, np.searchsorted(labels[order], np.arange(count)))[1:]  # -1: unknown
    in_units = np.isnan(labels) | (labels == 0) | (labels == 1)
    if not in_units.all():  # numbers to predict
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels[:, i] == 1) for i in range(labels.shape[1])]


def check_groups(groups: Sequence[str], split_of: Sequence[str], where: str) -> None:
    """Raises DataError if a group has examples in two splits.

    Args:
      groups: of all examples.
      split_of: the name of each one's split.
      where: name of the data, for messages.
    """
    group_codes, split_codes = Column.of(groups), Column.of(split_of)
    first = np.full(len(group_codes.values), -1, np.int64)
    # Assigned in reverse order, so that the first example of each group remains.
    first[group_codes.codes[::-1]] = split_codes.codes[::-1]
    other = np.flatnonzero(split_codes.codes != first[group_codes.codes])
    if not len(other):
        return
    row = int(other[0])
    divided = len(np.unique(group_codes.codes[other]))
    name = group_codes.values[group_codes.codes[row]]
    raise DataError(
        f"{where}: the group {name!r} is in two splits, "
        f"{split_codes.values[first[group_codes.codes[row]]]} and {split_codes[row]} "
        f"({divided} groups are). Results on them would not be those of unseen groups: correct the "
        "splits, or let a hash of the group divide the data (data.holdout, data.folds)."
    )
