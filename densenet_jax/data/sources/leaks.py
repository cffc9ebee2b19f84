"""Finds examples that are in two splits: the same image, or images of the same group.

A network is better on an image if it has seen it, or another image of the same patient, in training
than on an unseen one, so the metrics of the other split are too optimistic.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import Source

# Files of the two splits that the start of a run looks at, bytes that it reads of each that has the
# size of a file of the other split, and files that it reads completely, where these are equal.
FEW_FIRST, FEW_SECOND, SAMPLE_BYTES, WHOLE = 18_000, 2_000, 4096, 1000


class Leaks(NamedTuple):
    """What two splits share.

    Attributes:
      images: (number in the first split, number in the second) of equal images, each of the second
        split once.
      groups: the groups that are in both, sorted.
    """

    images: list[tuple[int, int]]
    groups: list[str]


def find(first: Source, second: Source) -> Leaks:
    """Returns the images and groups that two splits share, after comparing every example.

    Images are equal if their encoded bytes are, or their pixels if they are held in memory; the
    same picture saved again in another format is not found. Files of which no other has the size
    are not read.

    Args:
      first: a split.
      second: another split.
    """
    ours, theirs = range(len(first)), range(len(second))
    return Leaks(_equal_images(first, ours, second, theirs), shared_groups(first, second))


def notes(train: Source, other: Source) -> tuple[str, ...]:
    """Returns sentences about what two splits share, for the start of a run, at a bounded cost.

    Groups are compared completely. Of image files at most 18,000 of the first and 2,000 of the
    second split, evenly spread, are compared by size, where sizes are equal by 4 kB in their
    middle, and where these are equal by their content (1,000 files).
    Examples that are not files are not compared; see `find`.

    Args:
      train: the training split.
      other: the split that evaluations are made on.
    """
    found = []
    if groups := shared_groups(train, other):
        found.append(
            f"WARNING: {len(groups)} groups are in {train.name} and in {other.name}, as "
            f"{groups[0]!r}: results are not those of unseen groups"
        )
    if not (isinstance(train.examples, Files) and isinstance(other.examples, Files)):
        return tuple(found)
    ours, theirs = _spread(len(train), FEW_FIRST), _spread(len(other), FEW_SECOND)
    pairs = _equal_images(train, ours, other, theirs, WHOLE)
    if pairs:
        part = "" if len(ours) == len(train) and len(theirs) == len(other) else " of a sample"
        i, k = pairs[0]
        found.append(
            f"WARNING: {len(pairs)} images{part} of {other.name} are also in {train.name}, as "
            f"{other.describe(k)}, which equals {train.describe(i)}: results on them are not "
            "those of unseen images"
        )
    return tuple(found)


def _spread(count: int, most: int) -> Sequence[int]:
    """Returns at most `most` numbers below `count`, evenly spread."""
    return range(count) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def shared_groups(first: Source, second: Source) -> list[str]:
    """Returns the groups that are in both splits, sorted; [] if those of one are unknown."""
    if first.groups is None or second.groups is None:
        return []
    ours, theirs = (_present(Column.of(source.groups or ())) for source in (first, second))
    return sorted(ours & theirs)


def _present(column: Column) -> set[str]:
    return {column.values[code] for code in np.unique(column.codes)}


def _equal_images(
    first: Source,
    ours: Iterable[int],
    second: Source,
    theirs: Iterable[int],
    most: int = sys.maxsize,
) -> list[tuple[int, int]]:
    """Returns the pairs of equal images among the examples `ours` and `theirs`.

    Args:
      first: a split.
      ours: numbers of its examples.
      second: another split.
      theirs: numbers of its examples.
      most: number of files that are read completely, at most.
    """
    if isinstance(first.examples, Files) and isinstance(second.examples, Files):
        ours, theirs = _alike(first.examples, ours, second.examples, theirs, most)
    known: dict[bytes, int] = {}
    for i, digest in digests(first, ours):
        known.setdefault(digest, i)
    return [(known[digest], k) for k, digest in digests(second, theirs) if digest in known]


def digests(source: Source, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yields (number, hash of the encoded image or its pixels) of examples that can be read."""
    for i in numbers:
        try:
            image = source.examples[i]["image"]
        except OSError:
            continue  # training reports it
        if not isinstance(image, bytes):
            image = repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()
        yield i, hashlib.blake2b(image, digest_size=16).digest()


def _alike(
    first: Files, ours: Iterable[int], second: Files, theirs: Iterable[int], most: int
) -> tuple[list[int], list[int]]:
    """Returns the files of both splits whose size and middle a file of the other split has.

    Args:
      first: the files of a split.
      ours: numbers of files in it.
      second: those of another split.
      theirs: numbers of files in it.
      most: number of files to return, at most.
    """
    sizes = [dict(_sizes(first, ours)), dict(_sizes(second, theirs))]
    both = set(sizes[0].values()) & set(sizes[1].values())
    keys = [
        {i: (size, _middle(files.path(i), size)) for i, size in own.items() if size in both}
        for files, own in zip((first, second), sizes, strict=True)
    ]
    members: dict[tuple[int, bytes], tuple[list[int], list[int]]] = {}
    for side, own in enumerate(keys):
        for i, key in own.items():
            members.setdefault(key, ([], []))[side].append(i)
    found: tuple[list[int], list[int]] = ([], [])
    for ours, theirs in members.values():
        if ours and theirs:
            room = (most - len(found[0]) - len(found[1])) // 2
            found[0].extend(ours[:room])
            found[1].extend(theirs[:room])
    return sorted(found[0]), sorted(found[1])


def _sizes(files: Files, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yields (number, size in bytes) of the regular files among the examples."""
    for i in numbers:
        try:
            status = os.stat(files.path(i))
        except OSError:
            continue  # reading it will report it
        if stat.S_ISREG(status.st_mode):
            yield i, status.st_size


def _middle(path: str, size: int) -> bytes:
    """Returns the bytes in the middle of a file; the headers of images are often the same."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, (size - SAMPLE_BYTES) // 2))
            return file.read(SAMPLE_BYTES)
    except OSError:
        return path.encode("utf-8", "surrogateescape")  # equal to no other
