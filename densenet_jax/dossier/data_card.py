"""The data card: the content of each split, its duplicates, and what two splits share.

Every image is read once, so that one hash for each serves duplicates, leaks and the checksum.
"""

import collections
import hashlib
import itertools
from typing import Any

import numpy as np

from densenet_jax.data.sources import leaks, subsets
from densenet_jax.data.sources.source import Source

NAMED = 5  # largest number of pairs of equal images that are named


def describe(splits: dict[str, Source]) -> dict[str, Any]:
    """Returns the data card of some splits.

    Args:
      splits: by what they were used for, such as "training".

    Returns:
      {"splits": [{"use", "name", "examples", "groups" (number; None: unknown), "unreadable",
      "duplicates" (images of which the split has an equal one before), "conflicts" (those whose
      label differs from that of the first), "checksum" (SHA-256, hexadecimal), "notes", "columns"
      (names)}, ...];
      "labels": [{"name", "cells": [of each split, see `balance`]}, ...];
      "shared": [{"uses" (of two splits), "images", "groups" (numbers; None: unknown), "named":
      [text, ...]}, ...] of all pairs of splits}.
    """
    hashes = {use: dict(leaks.digests(split, range(len(split)))) for use, split in splits.items()}
    labels = {use: subsets.labels(split) for use, split in splits.items()}
    rows = [_row(use, split, hashes[use], labels[use]) for use, split in splits.items()]
    columns = [balance(split.task, labels[use], split.num_classes) for use, split in splits.items()]
    names = next(iter(splits.values())).class_names
    return {
        "splits": rows,
        "labels": [
            {"name": name, "cells": list(cells)}
            for name, cells in zip(names, zip(*columns, strict=True), strict=True)
        ],
        "shared": [
            _shared((a, b), (splits[a], splits[b]), (hashes[a], hashes[b]))
            for a, b in itertools.combinations(splits, 2)
        ],
    }


def balance(task: str, labels: np.ndarray, outputs: int) -> list[dict[str, Any]]:
    """Returns how often each class or label occurs, or where each number lies.

    Args:
      task: "classification", "multilabel" or "regression".
      labels: of a split, [N] or [N, L]; NaN: unknown.
      outputs: number of classes, labels or numbers.

    Returns:
      for each output {"known": number of examples}; of classes and labels also "count" and "share"
      (of the known ones); of numbers "mean", "std", "low", "high".  None for what no example tells.
    """
    if task == "classification":
        counts = np.bincount(labels, minlength=outputs).tolist()
        return [{"known": len(labels), "count": n, "share": _share(n, len(labels))} for n in counts]
    found: list[dict[str, Any]] = []
    for column in labels.T:
        known = column[~np.isnan(column)].astype(np.float64)
        if task == "multilabel":
            count = int(known.sum())
            row = {"count": count, "share": _share(count, len(known))}
        else:
            values = [known.mean(), known.std(), known.min(), known.max()] if len(known) else []
            row = dict(itertools.zip_longest(("mean", "std", "low", "high"), map(float, values)))
        found.append({"known": len(known), **row})
    return found


def checksum(hashes: dict[int, bytes], labels: np.ndarray, names: tuple[str, ...]) -> str:
    """Returns the SHA-256 of a split, which changes with any image, label, name or their order."""
    whole = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    whole.update(labels.astype("<i8" if labels.ndim == 1 else "<f4").tobytes())
    for i, own in hashes.items():
        whole.update(i.to_bytes(8, "little") + own)
    return whole.hexdigest()


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _row(use: str, split: Source, hashes: dict[int, bytes], labels: np.ndarray) -> dict[str, Any]:
    """Returns the entry of one split in `describe`."""
    first: dict[bytes, int] = {}
    earlier = {i: first.setdefault(own, i) for i, own in hashes.items()}
    again = [(i, k) for i, k in earlier.items() if i != k]
    differ = [not np.array_equal(labels[i], labels[k], equal_nan=True) for i, k in again]
    return {
        "use": use,
        "name": split.name,
        "examples": len(split),
        "groups": None if split.groups is None else len(set(split.groups)),
        "unreadable": len(split) - len(hashes),
        "duplicates": len(again),
        "conflicts": sum(differ),
        "checksum": checksum(hashes, labels, split.class_names),
        "notes": list(split.notes),
        "columns": list(split.columns),
    }


def _shared(
    uses: tuple[str, str], splits: tuple[Source, Source], hashes: tuple[dict[int, bytes], ...]
) -> dict[str, Any]:
    """Returns the images and groups that two splits share, see `describe`."""
    where = collections.defaultdict(list)
    for i, own in hashes[0].items():
        where[own].append(i)
    pairs = [(where[own][0], k) for k, own in hashes[1].items() if own in where]
    first, second = splits
    grouped = first.groups is not None and second.groups is not None
    return {
        "uses": list(uses),
        "images": len(pairs),
        "groups": len(leaks.shared_groups(first, second)) if grouped else None,
        "named": [f"{first.describe(i)} = {second.describe(k)}" for i, k in pairs[:NAMED]],
    }
