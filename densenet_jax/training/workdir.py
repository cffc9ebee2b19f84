"""A run's directory: made, locked, and kept from another run's configuration."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from densenet_jax.training.errors import ConfigError

# What decides a run's numbers from its first step; another value is another run.
FIXED = ("model", "seed", "batch_size", "data.name", "data.train_split", "data.image_size")


def make_workdir(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Makes a run's directory; refuses one that holds another run."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} is damaged; remove it or give another --workdir.") from None
        for key in FIXED:
            was, now = _lookup(old, key), _lookup(new, key)
            if was != now:
                raise ConfigError(
                    f"{workdir} holds a run with config.{key}={was}, not {now}; "
                    "give another --workdir, or remove that one."
                )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "lock").touch()
    except OSError as e:
        raise ConfigError(f"--workdir={workdir} cannot be written: {e.strerror}.") from None


def save_config(
    config: ml_collections.ConfigDict, class_names: Sequence[str], workdir: pathlib.Path
) -> None:
    """Writes config.json and classes.json, each whole or not at all."""
    for name, content in (
        ("classes.json", list(class_names)),
        ("config.json", json.loads(config.to_json())),
    ):
        temporary = workdir / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, workdir / name)


def _lookup(tree: dict, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run's directory.

    The kernel drops the lock with its process, however that ends, so no stale one can remain.

    Raises:
      ConfigError: another process holds it; its host and process id are named.
    """
    path = workdir / "lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"{workdir} is in use by another run ({file.read().strip() or 'unknown'}); "
                "wait for it, stop it, or give another --workdir."
            ) from None
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        yield
