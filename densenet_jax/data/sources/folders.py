"""Data sets of image files, in one folder for each class."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

from densenet_jax.data.sources.source import DataError, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLIT_ALIASES = {"validation": ("validation", "val", "valid", "test"), "train": ("train",)}


class Files(Sequence[dict[str, Any]]):
    """Examples in files, which are read when an example is requested.

    Attributes:
      files: [(path, label), ...], one pair for each example.
    """

    def __init__(self, files: list[tuple[str, int]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: Any) -> Any:
        path, label = self.files[i]
        return {"image": pathlib.Path(path).read_bytes(), "label": label}

    def path(self, i: int) -> str:
        """Returns the path of example i, for messages."""
        return self.files[i][0]

    @property
    def labels(self) -> list[int]:
        """The labels of all examples, in their order."""
        return [label for _, label in self.files]


def image_folder(root: str, split: str, holdout: float = 0.1) -> Source:
    """Returns the images of `root/SPLIT/CLASS/*`, or a part of the images of `root/CLASS/*`.

    Classes are numbered in the order of their names. If `root` has no folders of splits, a hash of
    CLASS/FILE divides its images: a share `holdout` is the validation split, the rest the training
    split. An image therefore stays in its split when other images are added or removed.

    Args:
      root: the folder; `~` is the home directory.
      split: "train", "validation" (also in a folder `val`, `valid` or `test`), or the name of a
        folder in `root`.
      holdout: share of the validation split of a folder without splits, between 0 and 1.

    Raises:
      DataError: a folder is missing, empty or not readable, or a class is not in the training
        split.
    """
    if not root:
        raise DataError(
            "data.name is 'folder', but data.data_dir is not set; "
            "add --config.data.data_dir=DIR, with images in DIR/train/CLASS/*.jpg."
        )
    base = pathlib.Path(root).expanduser()
    if not base.is_dir():
        raise DataError(
            f"{root} is not a folder; set data.data_dir to a folder that contains "
            "train/CLASS/*.jpg or CLASS/*.jpg."
        )
    names = SPLIT_ALIASES.get(split, (split,))
    folder = next((base / n for n in names if (base / n).is_dir()), None)
    if folder is None and not (base / "train").is_dir():
        return _part_of_one_folder(base, split, holdout)
    if folder is None:
        raise DataError(
            f"{root} has no folder {' or '.join(names)}; it has {', '.join(_folders(base))}. "
            "Add the folder, or choose another split."
        )
    # The training split defines the classes, so that a label means the same class in all splits.
    class_root = base / "train" if (base / "train").is_dir() else folder
    classes = _folders(class_root)
    unknown = sorted(set(_folders(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has classes that {class_root} lacks: {', '.join(unknown)}. Add them there, "
            "or remove them here."
        )
    files = _label(folder, classes, may_lack_classes=folder != class_root)
    return Source(Files(files), tuple(classes), str(folder))


def _part_of_one_folder(base: pathlib.Path, split: str, holdout: float) -> Source:
    if split not in SPLIT_ALIASES:
        raise DataError(
            f"{base} has no folder {split}. A folder without splits is divided into 'train' and "
            "'validation'; choose one of them."
        )
    if not 0 < holdout < 1:
        raise DataError(f"data.holdout is {holdout}; set it to a share between 0 and 1.")
    classes = _folders(base)
    held_out = split == "validation"
    files = [
        (path, label)
        for path, label in _label(base, classes, may_lack_classes=False)
        if (_fraction(os.path.relpath(path, base)) < holdout) == held_out
    ]
    if not files:
        raise DataError(
            f"The {split} split of {base} is empty with data.holdout={holdout}; choose another "
            "share, or divide the images into the folders train and val."
        )
    return Source(Files(files), tuple(classes), f"{base} ({split})")


def _fraction(path: str) -> float:
    """Returns the hash of a relative path as a number from 0 to 1, the same on all systems."""
    name = path.replace(os.sep, "/").encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def _folders(base: pathlib.Path) -> list[str]:
    try:
        found = sorted(p.name for p in base.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as e:
        raise DataError(f"The folder {base} cannot be read: {e.strerror}.") from e
    if not found:
        raise DataError(f"{base} has no class folders; it must contain CLASS/*.jpg.")
    return found


def _label(
    folder: pathlib.Path, classes: list[str], may_lack_classes: bool
) -> list[tuple[str, int]]:
    """Returns [(path, label), ...] of the images of all classes, in order of class and file name.

    Args:
      folder: contains a folder for each class, which may have folders of its own.
      classes: names of the classes in label order.
      may_lack_classes: whether a class may have no images.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        if may_lack_classes and not (folder / name).is_dir():
            continue
        paths = sorted(
            os.path.join(parent, file)
            for parent, _, children in os.walk(folder / name, onerror=refuse)
            for file in children
            if file.lower().endswith(IMAGE_SUFFIXES) and file[0] != "."
        )
        if not paths and not may_lack_classes:
            raise DataError(
                f"The class folder {folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); "
                "add images, or remove the folder."
            )
        files += [(path, label) for path in paths]
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return files
