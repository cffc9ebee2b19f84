"""A folder sealed with the checksums of its files, so that damage is seen before it is read."""

import hashlib
import pathlib

from densenet_jax.training.rundir import atomic_files

SEAL = "SHA256SUMS"  # `sha256sum -c` reads it


def seal(folder: pathlib.Path) -> None:
    """Writes the SHA-256 of every file of a folder into it, once the disk has them all."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        atomic_files.flush(path)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items())]
    atomic_files.write(folder / SEAL, "".join(lines))


def unsound(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a sealed folder; None: it is as it was sealed."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return f"it was never finished (it has no {SEAL})"
    sealed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = _digests(folder)
    missing = sealed.keys() - found.keys()
    changed = sorted(n for n in sealed.keys() & found.keys() if sealed[n] != found[n])
    if missing:
        return f"{sorted(missing)[0]} is missing"
    return f"{changed[0]} is damaged (its checksum differs)" if changed else None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(SEAL):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests
