"""Names of ImageNet's classes that people can read, for the WordNet numbers that files have."""

import functools
import pathlib
from collections.abc import Sequence

FILE = pathlib.Path(__file__).with_suffix(".txt")


@functools.cache
def table() -> dict[str, str]:
    """Returns WordNet number -> name, in the order of ILSVRC 2012's labels."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def names() -> tuple[str, ...]:
    """Returns the names of the 1,000 classes, in label order."""
    return tuple(table().values())


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names with WordNet numbers of ImageNet's classes replaced by names."""
    return tuple(table().get(name, name) for name in class_names)
