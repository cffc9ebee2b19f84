"""Finds the images and their labels in the two tars of ILSVRC 2012."""

import hashlib
import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from densenet_jax.data.preparing.shards import Item
from densenet_jax.data.sources.source import DataError

TARS = {  # size in bytes and MD5 of each published file, and its number of images
    "train": (147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e", 1_281_167),
    "validation": (6_744_924_160, "29b22e2961454d5413ddabcf34fc5622", 50_000),
}
URL = "https://image-net.org/download-images"


def check_size(path: pathlib.Path, split: str) -> None:
    """Raises DataError if a tar does not have the published size."""
    size, found = TARS[split][0], path.stat().st_size
    if found != size:
        cause = "the download is incomplete" if found < size else "it is another file"
        raise DataError(
            f"{path} has {found:,} bytes, but the published {split} tar has {size:,}: {cause}. "
            f"Download it again from {URL}, or pass --skip-hash to use it as it is."
        )


def check_md5(path: pathlib.Path, split: str, advance: Callable[[int], None]) -> None:
    """Raises DataError if a tar does not have the published MD5.

    Args:
      path: of the tar.
      split: "train" or "validation".
      advance: called with the number of bytes read since the last call.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() != TARS[split][1]:
        raise DataError(
            f"{path} has the MD5 {digest.hexdigest()}, but the published {split} tar has "
            f"{TARS[split][1]}: it is damaged. Download it again from {URL}, or pass --skip-hash "
            "to use it as it is."
        )


def train_items(path: pathlib.Path, classes: list[str]) -> list[Item]:
    """Returns the images of the training tar, which contains one tar of images for each class.

    Args:
      path: of the training tar.
      classes: WordNet numbers of the classes in label order.

    Raises:
      DataError: the file is not the training tar, or is damaged.
    """
    numbers = {name: label for label, name in enumerate(classes)}
    items = []
    with _open(path) as outer, path.open("rb") as file:
        for member in _members(outer, path):
            if not member.isfile():
                continue
            wnid = pathlib.PurePath(member.name).stem
            if wnid not in numbers or not member.name.endswith(".tar"):
                raise DataError(
                    f"{path} contains {member.name}; the training tar of ILSVRC 2012 contains one "
                    "tar for each of its 1,000 classes. Is --train the right file?"
                )
            window = _Window(file, member.offset_data, member.size)
            with _open(path, fileobj=window) as inner:
                for image in _members(inner, path):
                    if image.isfile():
                        offset = member.offset_data + image.offset_data
                        name = pathlib.PurePath(image.name).name
                        items.append(Item(str(path), name, numbers[wnid], offset, image.size))
    return items


def validation_items(path: pathlib.Path, classes: list[str], wnids: list[str]) -> list[Item]:
    """Returns the images of the validation tar.

    Args:
      path: of the validation tar.
      classes: WordNet numbers of the classes in label order.
      wnids: WordNet number of each image's class, in the order of the images' names.

    Raises:
      DataError: the file is not the validation tar, is damaged, or has another number of images.
    """
    with _open(path) as tar:
        images = sorted((m for m in _members(tar, path) if m.isfile()), key=lambda m: m.name)
    if len(images) != len(wnids) or any(m.name.endswith(".tar") for m in images):
        raise DataError(
            f"{path} contains {len(images):,} files; the validation tar of ILSVRC 2012 contains "
            f"{len(wnids):,} images. Is --val the right file?"
        )
    numbers = {name: label for label, name in enumerate(classes)}
    return [
        Item(str(path), pathlib.PurePath(m.name).name, numbers[wnid], m.offset_data, m.size)
        for m, wnid in zip(images, wnids, strict=True)
    ]


def labels() -> tuple[list[str], list[str]]:
    """Returns (WordNet numbers of the classes in label order, that of each validation image).

    The second list is in the order of the images' names. Both come from files of TFDS.
    """
    import tensorflow_datasets as tfds

    folder = pathlib.Path(tfds.core.tfds_path("datasets/imagenet2012"))
    return (
        (folder / "labels.txt").read_text().split(),
        (folder / "validation_labels.txt").read_text().split(),
    )


def _open(path: pathlib.Path, fileobj: "_Window | None" = None) -> tarfile.TarFile:
    """Opens a tar, or the tar in a part of it; raises DataError if it is none."""
    try:
        return tarfile.open(path, mode="r:", fileobj=fileobj)
    except (tarfile.TarError, EOFError) as e:
        raise DataError(f"{path} is not an uncompressed tar, or is damaged: {e}") from e
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.") from e


def _members(tar: tarfile.TarFile, path: pathlib.Path) -> Iterator[tarfile.TarInfo]:
    """Yields the members of the tar `path` or of one inside it; raises DataError for damage."""
    try:
        yield from tar
    except (tarfile.TarError, EOFError) as e:
        raise DataError(f"{path} is damaged: {e}. Download it again from {URL}.") from e


class _Window(io.RawIOBase):
    """A part of a file as a file object, so that a tar inside a tar is read without a copy.

    Args:
      file: an open binary file.
      start: offset of the part in bytes.
      size: of the part in bytes.
    """

    def __init__(self, file: io.BufferedReader, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count
