"""A run's directory: made, locked, and kept from another run's configuration."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import atomic_files

# Keys, or prefixes, that decide a run's numbers from its first step: another value, another run.
FIXED = (
    "model.",
    "seed.",
    "batch_size.",
    "batch_norm.",
    "data.name.",
    "data.train_split.",
    "data.classes.",
    "data.examples_per_class.",
    "data.image_size.",
    "optimizer.name.",
    "ema_decay.",
)


def make_workdir(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Makes a run's directory; refuses one that holds another run."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} is damaged; remove it or give another --workdir.") from None
        was, now = (dict(_flatten(tree)) for tree in (old, new))
        for key in was.keys() & now.keys():
            if f"{key}.".startswith(FIXED) and was[key] != now[key] and was[key] is not None:
                raise ConfigError(
                    f"{workdir} holds a run with config.{key}={was[key]}, not {now[key]}; "
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
        atomic_files.write(workdir / name, json.dumps(content, indent=2) + "\n")


def check_shared(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Waits until process 0 has written config.json, and checks that this process can see it.

    Raises:
      ConfigError: the processes do not share the directory.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("config.json is written")
    try:
        seen = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        seen = None
    if seen != json.loads(config.to_json()):
        raise ConfigError(
            f"Process {jax.process_index()} on {socket.gethostname()} does not see what process 0 "
            f"wrote to {workdir}; --workdir must be on a file system that all machines share, and "
            "all processes need the same configuration."
        )


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (a.b.c, value) for every leaf of nested dicts."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run's directory.

    The kernel drops the lock with its process, however that ends, so no stale one can remain.
    Of several processes of a job the first one holds it for all.

    Raises:
      ConfigError: another process holds it; its host and process id are named.
    """
    if jax.process_index() != 0:
        yield
        return
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
