"""Checksums of the files of a folder, so that damage is detected before the files are used."""

import hashlib
import pathlib

from densenet_jax import atomic_files
from densenet_jax.training.errors import CheckpointError

SEAL = "SHA256SUMS"  # the file of checksums, in the format of `sha256sum -c`


def seal(folder: pathlib.Path) -> None:
    """Writes the SHA-256 of every file of a folder into it, after all of them are on disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        atomic_files.flush(path)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items())]
    atomic_files.write(folder / SEAL, "".join(lines))


def unsound(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a folder that should have checksums; None if all files match.

    Raises:
      CheckpointError: a file cannot be read, which says nothing about its content.
    """
    try:
        return _unsound(folder)
    except OSError as e:
        raise CheckpointError(
            f"{e.filename or folder} cannot be read ({e.strerror}); nothing was changed. Check the "
            "disk and the permissions, then start again."
        ) from e


def _unsound(folder: pathlib.Path) -> str | None:
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return f"it was not completely written (it has no {SEAL})"
    except ValueError:
        return f"{SEAL} is damaged (it is not text)"
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = _digests(folder)
    missing = expected.keys() - found.keys()
    changed = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
    if missing:
        return f"{sorted(missing)[0]} is missing"
    return f"{changed[0]} is damaged (its checksum differs)" if changed else None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns {file's path in the folder: its SHA-256 in hexadecimal}."""
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file() and SEAL not in path.name:  # nor what a killed `seal` left
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests
