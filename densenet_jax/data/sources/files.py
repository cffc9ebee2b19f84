"""Examples that are image files: their paths and labels, and the search for files by name."""

import collections
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from densenet_jax.data.reading.files import read_file
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.source import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".npy", ".dcm", ".dicom"),
)


class Files(Sequence[dict[str, Any]]):
    """Examples in files, which are read when an example is requested.

    Attributes:
      root: the folder that paths are relative to.
      paths: of the files, one for each example.
      labels: int32 [N], or float32 [N, L].
    """

    def __init__(self, root: str, paths: Sequence[str], labels: np.ndarray):
        self.root, self.paths, self.labels = root, paths, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: Any) -> Any:
        label = self.labels[i]
        return {"image": read_file(self.path(i)), "label": label if label.ndim else int(label)}

    def path(self, i: int) -> str:
        """Returns the path of example i."""
        return os.path.join(self.root, self.paths[i])

    def take(self, rows: np.ndarray, labels: np.ndarray) -> "Files":
        """Returns the examples `rows` [M] with new labels, [M] or [M, L]."""
        return Files(self.root, Column.of(self.paths).take(rows), labels)


def walk(
    folder: str | os.PathLike[str], refuse: Callable[[OSError], object]
) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) of a folder and all below; each link is followed once.

    Args:
      folder: where to begin.
      refuse: receives the error of a folder that cannot be read, and usually raises another.
    """
    seen = {os.path.realpath(folder)}
    for parent, children, files in os.walk(folder, onerror=refuse, followlinks=True):
        new = []
        for child in children:
            real = os.path.realpath(os.path.join(parent, child))
            if real not in seen:
                seen.add(real)
                new.append(child)
        children[:] = new
        yield parent, files


def refuse(error: OSError) -> None:
    """Raises the DataError of a folder that cannot be read."""
    raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")


class Names:
    """The image files below a folder by their names, with and without suffix.

    Args:
      root: the folder.

    Raises:
      DataError: a folder cannot be read.
    """

    def __init__(self, root: pathlib.Path):
        self._found: dict[str, list[str]] = collections.defaultdict(list)
        base = os.fspath(root)
        for parent, names in walk(base, refuse):
            prefix = os.path.relpath(parent, base).replace(os.sep, "/")
            for name in names:
                stem, suffix = os.path.splitext(name)
                if name[0] == "." or suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                path = name if prefix == "." else f"{prefix}/{name}"
                self._found[name].append(path)
                self._found[stem].append(path)

    def find(self, name: str) -> list[str]:
        """Returns the relative paths of the files of this name, with or without their suffix."""
        return self._found.get(name, [])
