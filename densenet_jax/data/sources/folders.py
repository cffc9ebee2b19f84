"""Data sets of image files, in one folder for each class."""

import collections
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from densenet_jax.data.sources import beside, splits
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import IMAGE_SUFFIXES, Files, refuse, walk
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.data.sources.splits import SPLIT_ALIASES, Division


def image_folder(
    root: str,
    split: str,
    holdout: float = 0.1,
    *,
    group: str = "",
    folds: int = 0,
    fold: int = 0,
) -> Source:
    """Returns the images of `root/SPLIT/CLASS/*`, or a part of the images of `root/CLASS/*`.

    Classes are numbered in the order of their names. If `root` has no folders of splits, a hash of
    CLASS/FILE, or of the image's group, divides its images: a share `holdout`, or a fold, is the
    validation split, the rest the training split. An image therefore stays in its split when other
    images are added or removed.

    Args:
      root: the folder; `~` is the home directory.
      split: "train", "validation" (also in a folder `val` or `valid`, or else `test`), or the name
        of a folder in `root`.
      holdout: share of the validation split of a folder without splits, between 0 and 1.
      group: regular expression that finds the group of an image, such as its patient, in its path
        relative to `root`, with forward slashes: the first parenthesis, or else the whole match.
        No group is in two splits. "": every image is a group of its own.
      folds: number of folds of a cross-validation of a folder without splits; 0: holdout.
      fold: number of the fold that is the validation split, from 0.

    Raises:
      DataError: a folder is missing, empty or not readable, a class is not in the training split,
        an image has no group, or a group is in two splits.
    """
    if not root:
        raise DataError(
            "data.name is 'folder', but data.data_dir is not set; "
            "add --config.data.data_dir=DIR, with images in DIR/train/CLASS/*.jpg."
        )
    base, division = pathlib.Path(root).expanduser(), Division(holdout, folds, fold)
    if not base.is_dir():
        raise DataError(
            f"{root} is not a folder; set data.data_dir to a folder that contains "
            "train/CLASS/*.jpg or CLASS/*.jpg (--config.data.name=table takes a file of labels)."
        )
    pattern = _pattern(group)
    there = _subfolders(base)
    name, notes = splits.find(split, there, str(base))
    train, _ = splits.find("train", there, str(base))
    if name is None and train is None:
        return _part_of_one_folder(base, split, division, pattern)
    if name is None:
        names = SPLIT_ALIASES.get(split, (split,))
        raise DataError(
            f"{root} has no folder {' or '.join(names)}; it has {', '.join(there)}. "
            "Add the folder, or choose another split."
        )
    if folds:
        raise DataError(
            f"data.folds={folds} divides a folder without splits, but {base} has the split {name}; "
            "set data.data_dir to a folder of classes, or data.folds to 0."
        )
    folder, class_root = base / name, base / (train or name)
    # The training split defines the classes, so that a label means the same class in all splits.
    classes = _classes(class_root)
    unknown = sorted(set(_folders(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has classes that {class_root} lacks: {', '.join(unknown)}. Add them there, "
            "or remove them here."
        )
    paths, labels, left_out = _label(base, name, classes, may_lack_classes=folder != class_root)
    groups = None
    if pattern is not None:
        groups = _groups(base, paths, pattern)
        others = [other for other in there if other != name and _is_split(other)]
        listed = {other: _label(base, other, classes, may_lack_classes=True)[0] for other in others}
        splits.check_groups(
            [*groups, *(g for found in listed.values() for g in _groups(base, found, pattern))],
            [name] * len(paths) + [other for other, found in listed.items() for _ in found],
            str(base),
        )
    files = Files(str(base), paths, labels)
    return Source(files, tuple(classes), str(folder), notes=(*notes, *left_out), groups=groups)


def _is_split(name: str) -> bool:
    """Whether a folder has the name of a split."""
    return any(name.lower() in names for names in SPLIT_ALIASES.values())


def _pattern(group: str) -> re.Pattern[str] | None:
    """Returns the compiled pattern of groups; raises DataError if it is none."""
    try:
        return re.compile(group) if group else None
    except re.error as e:
        raise DataError(f"data.group={group!r} is not a regular expression: {e}.") from None


def _groups(base: pathlib.Path, paths: Sequence[str], pattern: re.Pattern[str]) -> Column:
    """Returns the group of each path; raises DataError for the first path without one."""
    groups = []
    for path in paths:
        match = pattern.search(path.replace(os.sep, "/"))
        found = match and match[1 if pattern.groups else 0]
        if not found:
            raise DataError(
                f"data.group={pattern.pattern!r} finds no group in {path} (in {base}); change the "
                "expression so that it finds one in every path."
            )
        groups.append(found)
    return Column.of(groups)


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


def _part_of_one_folder(
    base: pathlib.Path, split: str, division: Division, pattern: re.Pattern[str] | None
) -> Source:
    beside.check(base)
    classes = _classes(base)
    paths, labels, left_out = _label(base, "", classes, may_lack_classes=False)
    groups = None if pattern is None else _groups(base, paths, pattern)
    keys = Column.of(path.replace(os.sep, "/") for path in paths) if groups is None else groups
    rows, notes = splits.rows_of_part(split, keys, labels, classes, division, str(base))
    nested = next((path for path in paths if path.count(os.sep) > 1), None)
    if groups is None and nested is not None:
        notes = (
            *notes,
            f"warning: images lie in folders below their class ({nested}), and single images were "
            "drawn for each split; if such a folder is a patient or a series, keep it in one split "
            "with --config.data.group='^[^/]+/([^/]+)/'",
        )
    return Source(
        Files(str(base), paths, labels).take(rows, labels[rows]),
        tuple(classes),
        f"{base} ({split})",
        notes=(*notes, *left_out),
        groups=groups and groups.take(rows),
    )


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
    base: pathlib.Path, split: str, classes: list[str], may_lack_classes: bool
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Returns the paths of all images of a split, their labels, and notes about files left out.

    Args:
      base: paths are relative to it.
      split: name of its folder of the split, which contains a folder for each class; "": `base`
        itself does. Class folders may have folders of their own; links are followed.
      classes: names of the classes in label order.
      may_lack_classes: whether a class may have no images.

    Returns:
      the paths in the order of class and file names, int32 [N], and the notes.
    """
    folder, root = base / split, str(base)
    paths: list[str] = []
    counts = []
    left_out: collections.Counter[str] = collections.Counter()
    for name in classes:
        own: list[str] = []
        if not may_lack_classes or (folder / name).is_dir():
            # Joined as text, because every path must begin with `root`, even if that is ".".
            for parent, children in walk(os.path.join(root, split, name), refuse):
                for file in children:
                    if file[0] == ".":
                        continue
                    if file.lower().endswith(IMAGE_SUFFIXES):
                        own.append(os.path.join(parent, file))
                    else:
                        left_out[os.path.splitext(file)[1].lower() or "without suffix"] += 1
        own.sort()
        if not own and not may_lack_classes:
            raise DataError(
                f"The class folder {folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); "
                "add images, or remove the folder."
            )
        paths += [path[len(root) :].lstrip(os.sep) for path in own]
        counts.append(len(own))
    if not paths:
        raise DataError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    if not left_out:
        return paths, labels, ()
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))[:5]
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in ranked)
    note = (
        f"{folder}: {sum(left_out.values())} files are left out ({kinds}); images end in "
        f"{', '.join(IMAGE_SUFFIXES)}"
    )
    return paths, labels, (note,)
