"""Data sets of image files, in one folder for each class."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from densenet_jax.data.sources.source import DataError, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# Names of split folders, in any capitals, the preferred ones first.
SPLIT_ALIASES = {
    "validation": ("validation", "val", "valid", "test", "testing"),
    "train": ("train", "training"),
}


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
    folder, train = _split_folder(base, split), _split_folder(base, "train")
    if folder is None and train is None:
        return _part_of_one_folder(base, split, holdout)
    if folder is None:
        names = SPLIT_ALIASES.get(split, (split,))
        raise DataError(
            f"{root} has no folder {' or '.join(names)}; it has {', '.join(_folders(base))}. "
            "Add the folder, or choose another split."
        )
    # The training split defines the classes, so that a label means the same class in all splits.
    class_root = folder if train is None else train
    classes = _classes(class_root)
    unknown = sorted(set(_folders(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has classes that {class_root} lacks: {', '.join(unknown)}. Add them there, "
            "or remove them here."
        )
    files, notes = _label(folder, classes, may_lack_classes=folder != class_root)
    if folder.name.lower() in ("test", "testing") and split == "validation":
        notes = (
            f"there is no validation folder: {folder} chooses the best checkpoint, so its "
            "accuracy is not that of unseen images",
            *notes,
        )
    return Source(Files(files), tuple(classes), str(folder), notes=notes)


def _split_folder(base: pathlib.Path, split: str) -> pathlib.Path | None:
    """Returns the folder of a split, whatever its capitals; None if there is none.

    Raises:
      DataError: several folders differ only in their capitals.
    """
    there = _subfolders(base)
    for name in SPLIT_ALIASES.get(split, (split,)):
        found = [folder for folder in there if folder.lower() == name.lower()]
        if len(found) > 1:
            raise DataError(
                f"{base} has {' and '.join(found)}; leave one folder for the {split} split."
            )
        if found:
            return base / found[0]
    return None


def _classes(folder: pathlib.Path) -> list[str]:
    """Returns the names of the class folders.

    Raises:
      DataError: there is only one, or the folders look like splits or like a data set each.
    """
    classes = _folders(folder)
    inner = [set(_subfolders(folder / name, alone=True)) for name in classes]
    if len(classes) == 1 and inner[0]:
        raise DataError(
            f"{folder} has one folder, {classes[0]}, which has only folders "
            f"({', '.join(sorted(inner[0])[:3])}): it is one level too high. "
            f"Set --config.data.data_dir={folder / classes[0]}."
        )
    if len(classes) > 1 and all(names and names == inner[0] for names in inner):
        raise DataError(
            f"{folder} has the folders {', '.join(classes[:3])}, which all contain the folders "
            f"{', '.join(sorted(inner[0])[:3])}: they look like splits, not like classes. Name the "
            "splits train and val, or --config.data.train_split and --config.data.eval_split."
        )
    if len(classes) == 1:
        raise DataError(
            f"{folder} has only one class, {classes[0]}; a classifier needs at least two class "
            "folders."
        )
    return classes


def _part_of_one_folder(base: pathlib.Path, split: str, holdout: float) -> Source:
    if split not in SPLIT_ALIASES:
        raise DataError(
            f"{base} has no folder {split}. A folder without splits is divided into 'train' and "
            "'validation'; choose one of them."
        )
    if not 0 < holdout < 1:
        raise DataError(f"data.holdout is {holdout}; set it to a share between 0 and 1.")
    classes = _classes(base)
    held_out = split == "validation"
    found, notes = _label(base, classes, may_lack_classes=False)
    fractions = [_fraction(os.path.relpath(path, base)) for path, _ in found]
    # The image with the largest hash of each class is for training, so that no class lacks one.
    largest = [0.0] * len(classes)
    for fraction, (_, label) in zip(fractions, found, strict=True):
        largest[label] = max(largest[label], fraction)
    files = [
        (path, label)
        for fraction, (path, label) in zip(fractions, found, strict=True)
        if (fraction < holdout and fraction < largest[label]) == held_out
    ]
    if not files:
        raise DataError(
            f"The {split} split of {base} is empty with data.holdout={holdout}; choose another "
            "share, or divide the images into the folders train and val."
        )
    notes = (f"the {split} split is a part of {base} (data.holdout={holdout:g})", *notes)
    return Source(Files(files), tuple(classes), f"{base} ({split})", notes=notes)


def _fraction(path: str) -> float:
    """Returns the hash of a relative path as a number from 0 to 1, the same on all systems."""
    name = path.replace(os.sep, "/").encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def _subfolders(base: pathlib.Path, alone: bool = False) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones.

    Args:
      base: the folder.
      alone: return none if there is a file beside them; the search ends at the first file, since a
        class may have a million.

    Raises:
      DataError: the folder cannot be read.
    """
    found = []
    try:
        with os.scandir(base) as entries:
            for entry in entries:
                if alone and entry.is_file():
                    return []
                if entry.is_dir() and entry.name[0] != ".":
                    found.append(entry.name)
    except OSError as e:
        raise DataError(f"The folder {base} cannot be read: {e.strerror}.") from e
    return sorted(found)


def _folders(base: pathlib.Path) -> list[str]:
    found = _subfolders(base)
    if not found:
        raise DataError(f"{base} has no class folders; it must contain CLASS/*.jpg.")
    return found


def _label(
    folder: pathlib.Path, classes: list[str], may_lack_classes: bool
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Returns [(path, label), ...] of all images, and notes about the files that are left out.

    The order is that of class and file names.

    Args:
      folder: contains a folder for each class, which may have folders of its own; links are
        followed.
      classes: names of the classes in label order.
      may_lack_classes: whether a class may have no images.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    files: list[tuple[str, int]] = []
    left_out: collections.Counter[str] = collections.Counter()
    for label, name in enumerate(classes):
        if may_lack_classes and not (folder / name).is_dir():
            continue
        paths = []
        for parent, children in _walk(folder / name, refuse):
            for file in children:
                if file[0] == ".":
                    continue
                if file.lower().endswith(IMAGE_SUFFIXES):
                    paths.append(os.path.join(parent, file))
                else:
                    left_out[os.path.splitext(file)[1].lower() or "without suffix"] += 1
        paths.sort()
        if not paths and not may_lack_classes:
            raise DataError(
                f"The class folder {folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); "
                "add images, or remove the folder."
            )
        files += [(path, label) for path in paths]
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    if not left_out:
        return files, ()
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))[:5]
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in ranked)
    return files, (
        f"{folder}: {sum(left_out.values())} files are left out ({kinds}); images end in "
        f"{', '.join(IMAGE_SUFFIXES)}",
    )


def _walk(
    folder: pathlib.Path, refuse: Callable[[OSError], NoReturn]
) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) of a folder and all below; each link is followed once."""
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
