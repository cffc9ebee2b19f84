"""A run's directory: its creation, its lock, and its protection from a different configuration."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import jax
import ml_collections
from jax.experimental import multihost_utils

from densenet_jax import atomic_files
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import bounded_files, run_classes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Keys, or prefixes of keys, that must not change when a run is resumed: with another value its
# numbers would have been different from the first step on.
FIXED = (
    "model.",
    "seed.",
    "batch_size.",
    "batch_norm.",
    "data.name.",
    "data.train_split.",
    "data.classes.",
    "data.holdout.",
    "data.label_columns.",
    "data.uncertain.",
    "data.split_column.",
    "data.group_column.",
    "data.group.",
    "data.folds.",
    "data.fold.",
    "data.examples_per_class.",
    "data.image_size.",
    "optimizer.name.",
    "ema_decay.",
)


def make_workdir(
    config: ml_collections.ConfigDict, class_names: Sequence[str], workdir: pathlib.Path
) -> None:
    """Creates a run's directory, unless it exists.

    Args:
      config: the run's configuration.
      class_names: of the data, in label order.
      workdir: the directory.

    Raises:
      ConfigError: the directory holds a run with another configuration (a key of `FIXED` differs)
        or other classes, its config.json is damaged, or it cannot be written.
    """
    run_classes.check(class_names, workdir)
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        try:
            old = bounded_files.read_json(path)
            was = dict(_flatten(old))
        except OSError as e:
            raise ConfigError(f"{path} cannot be read: {e.strerror}.") from None
        except (ValueError, RecursionError):
            raise ConfigError(
                f"{path} is damaged; remove it or choose another --workdir."
            ) from None
        now = dict(_flatten(new))
        for key in was.keys() & now.keys():
            if f"{key}.".startswith(FIXED) and was[key] != now[key] and was[key] is not None:
                raise ConfigError(
                    f"{workdir} holds a run with config.{key}={was[key]}, not {now[key]}; "
                    "choose another --workdir, or remove that directory."
                )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "lock").touch()
    except OSError as e:
        raise ConfigError(f"--workdir={workdir} cannot be written: {e.strerror}.") from None


def save_config(
    config: ml_collections.ConfigDict, class_names: Sequence[str], workdir: pathlib.Path
) -> None:
    """Writes config.json and classes.json, each atomically.

    Args:
      config: the run's configuration.
      class_names: in label order.
      workdir: the run's directory.
    """
    for name, content in (
        (run_classes.FILE, list(class_names)),
        ("config.json", json.loads(config.to_json())),
    ):
        atomic_files.write(workdir / name, json.dumps(content, indent=2) + "\n")


def check_shared(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Waits until process 0 has written config.json, and checks that this process can read it.

    Args:
      config: this process's configuration.
      workdir: the run's directory.

    Raises:
      ConfigError: the processes do not share the directory, or have different configurations.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("config.json is written")
    try:
        seen = bounded_files.read_json(workdir / "config.json")
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
    """Holds the lock of a run's directory while the context is open.

    The kernel releases the lock when the process ends, in whatever way, so no stale lock remains.
    In a job of several processes the first one holds it for all.

    Args:
      workdir: the directory, with the file `lock`.

    Raises:
      ConfigError: another process holds the lock; the message names its host and process id.
    """
    if jax.process_index() != 0:
        yield
        return
    path = workdir / "lock"
    if fcntl is None:
        with _locked_file(workdir):
            yield
        return
    # The directory itself is locked, because people or programs may delete the file `lock`, which
    # only says who holds the lock.  (Earlier versions locked the file, so it is locked, too.)
    directory = os.open(workdir, os.O_RDONLY)
    try:
        with path.open("a+", encoding="utf-8") as file:
            try:
                _lock(directory)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ConfigError(
                    f"{workdir} is in use by another run ({file.read().strip() or 'unknown'}); "
                    "wait for it, stop it, or choose another --workdir."
                ) from None
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
            file.flush()
            yield
    finally:
        os.close(directory)


@contextlib.contextmanager
def _locked_file(workdir: pathlib.Path) -> Iterator[None]:
    """Does what `locked` does where the system cannot lock a directory, as Windows."""
    try:
        with filelock.FileLock(workdir / "lock.windows", timeout=0):
            yield
    except filelock.Timeout:
        raise ConfigError(
            f"{workdir} is in use by another run; wait for it, stop it, or choose another "
            "--workdir."
        ) from None


def _lock(directory: int) -> None:
    """Locks an open directory, unless its file system has no locks of directories (NFS).

    Raises:
      BlockingIOError: another process holds the lock.
    """
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass
