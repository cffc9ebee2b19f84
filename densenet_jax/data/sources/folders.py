"""Folders of images, one for each class."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

from densenet_jax.data.sources.source import DataError, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLIT_ALIASES = {"validation": ("validation", "val", "valid", "test"), "train": ("train",)}


class _Files(Sequence):
    """Examples read from files when they are asked for."""

    def __init__(self, files: list[tuple[str, int]]):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        return {"image": pathlib.Path(path).read_bytes(), "label": label}

    def path(self, i: int) -> str:
        return self.files[i][0]

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self.files]


def image_folder(root: str, split: str, holdout: float = 0.1) -> Source:
    """Returns the images of `root/split/class/*`, or a part of `root/class/*`.

    Labels number the classes by name. Where `root` has no folders of splits, its images are divided
    by a hash of CLASS/FILE: a share `holdout` is the validation split, the rest is for training.
    Files that are added or removed move no other from one split to the other.

    Raises:
      DataError: a folder is missing, empty, or must not be read.
    """
    if not root:
        raise DataError(
            "data.name is 'folder', but data.data_dir is not set; "
            "add --config.data.data_dir=DIR, with images in DIR/train/CLASS/*.jpg."
        )
    base = pathlib.Path(root).expanduser()
    if not base.is_dir():
        raise DataError(
            f"{root} is not a folder; data.data_dir must hold train/CLASS/*.jpg or CLASS/*.jpg."
        )
    names = SPLIT_ALIASES.get(split, (split,))
    folder = next((base / n for n in names if (base / n).is_dir()), None)
    if folder is None and not (base / "train").is_dir():
        return _part_of_one_folder(base, split, holdout)
    if folder is None:
        raise DataError(
            f"{root} has no folder {' or '.join(names)}; it has {', '.join(_folders(base))}."
        )
    # The classes are those of the training split, so that every split numbers them alike.
    class_root = base / "train" if (base / "train").is_dir() else folder
    classes = _folders(class_root)
    strangers = sorted(set(_folders(folder)) - set(classes))
    if strangers:
        raise DataError(f"{folder} has classes that {class_root} lacks: {', '.join(strangers)}.")
    files = _label(folder, classes, may_lack_classes=folder != class_root)
    return Source(_Files(files), tuple(classes), str(folder))


def _part_of_one_folder(base: pathlib.Path, split: str, holdout: float) -> Source:
    if split not in SPLIT_ALIASES:
        raise DataError(
            f"{base} has no folder {split}, and is divided into 'train' and 'validation' only."
        )
    if not 0 < holdout < 1:
        raise DataError(f"data.holdout is {holdout}; a share between 0 and 1 is needed.")
    classes = _folders(base)
    held_out = split == "validation"
    files = [
        (path, label)
        for path, label in _label(base, classes, may_lack_classes=False)
        if (_fraction(os.path.relpath(path, base)) < holdout) == held_out
    ]
    if not files:
        raise DataError(
            f"No image of {base} falls into the {split} split at data.holdout={holdout}; "
            "choose another share, or divide the images into train and val folders."
        )
    return Source(_Files(files), tuple(classes), f"{base} ({split})")


def _fraction(path: str) -> float:
    """Returns a number from 0 to 1 that a path, with forward slashes, always hashes to."""
    name = path.replace(os.sep, "/").encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def _folders(base: pathlib.Path) -> list[str]:
    try:
        found = sorted(p.name for p in base.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as e:
        raise DataError(f"The folder {base} cannot be read: {e.strerror}.") from e
    if not found:
        raise DataError(f"{base} has no class folders; expected CLASS/*.jpg in it.")
    return found


def _label(
    folder: pathlib.Path, classes: list[str], may_lack_classes: bool
) -> list[tuple[str, int]]:
    """Returns the image files of each class with their labels, in the order of their names."""

    def refuse(error: OSError):
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    files = []
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
                "remove it or fill it."
            )
        files += [(path, label) for path in paths]
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return files
