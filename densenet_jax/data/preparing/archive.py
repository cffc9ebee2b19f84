"""Unpacks an archive of image folders after checking its hash."""

import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable

from densenet_jax.data.preparing.download import Remote, check, fetch
from densenet_jax.data.sources.source import DataError

MAX_MEMBERS = 20_000_000


def unpacked(
    source: str, digest: str, folder: pathlib.Path, advance: Callable[[int], None]
) -> pathlib.Path:
    """Returns the folder with the content of an archive.

    Args:
      source: a URL, or the path of a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip file.
      digest: its MD5 or SHA-256.
      folder: for the archive and its content, which is kept there for another call.
      advance: called with the number of bytes that have been downloaded.

    Raises:
      DataError: the archive cannot be had, is another one, is damaged, would write outside its
        folder, or its content has no room on the disk.
    """
    remote = Remote(source, digest)
    if source.startswith(("http://", "https://")):
        path = fetch(remote, folder, advance)
    else:
        path = pathlib.Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"There is no file {path}; pass a URL or the path of an archive.")
        check(path, remote)
    content, unfinished = folder / digest.lower(), folder / f"{digest.lower()}.incomplete"
    if not content.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            _extract(path, unfinished)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, RuntimeError, OSError) as e:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise DataError(f"{path} cannot be unpacked: {e}.") from None
        unfinished.rename(content)
    return _inner(content)


def _extract(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks an archive; members that would leave the folder are refused by the library."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_room([member.file_size for member in archive.infolist()], path, folder)
            archive.extractall(folder)
        return
    if not hasattr(tarfile, "data_filter"):
        raise DataError("This Python unpacks tars without checks; use Python 3.11.4 or newer.")
    with tarfile.open(path) as tar:
        sizes = []
        for member in tar:
            sizes.append(member.size)
            if len(sizes) > MAX_MEMBERS:
                break
        _check_room(sizes, path, folder)
        tar.extractall(folder, filter="data")


def _check_room(sizes: list[int], path: pathlib.Path, folder: pathlib.Path) -> None:
    free = shutil.disk_usage(folder).free
    if len(sizes) > MAX_MEMBERS:
        raise DataError(f"{path} has more than {MAX_MEMBERS:,} members.")
    if sum(sizes) > free:
        raise DataError(
            f"{path} unpacks to {sum(sizes) / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB "
            "free; choose another --data-dir."
        )


def _inner(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder without outer ones that hold only one other folder of folders."""
    while True:
        inner = [path for path in folder.iterdir() if path.name not in ("__MACOSX", ".DS_Store")]
        if len(inner) != 1 or not any(path.is_dir() for path in inner[0].glob("*/")):
            return folder
        folder = inner[0]
