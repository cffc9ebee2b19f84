"""Readable names for the WordNet numbers of ImageNet's classes, such as n01440764."""

import functools
import pathlib
from collections.abc import Sequence

FILE = pathlib.Path(__file__).with_suffix(".txt")


@functools.cache
def table() -> dict[str, str]:
    """Returns {WordNet number: name} of the 1,000 classes, in the label order of ILSVRC 2012."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def names() -> tuple[str, ...]:
    """Returns the names of the 1,000 classes in label order."""
    return tuple(table().values())


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names, with ImageNet's WordNet numbers replaced by readable names."""
    return tuple(table().get(name, name) for name in class_names)
