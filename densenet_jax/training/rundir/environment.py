"""Software and hardware of a run, stored with it so that the run can be repeated."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

from densenet_jax import atomic_files
from densenet_jax.training.rundir import bounded_files

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, Any]:
    """Returns {"python", "platform", "versions", "revision", "processes", "devices"}.

    "versions" is {package: version}; "revision" is the git revision of the code, or None outside a
    repository; "devices" lists all devices of the job.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "revision": _revision(),
        "processes": jax.process_count(),
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
    }


def save(workdir: pathlib.Path) -> None:
    """Appends the current environment to environment.json, an entry for each start of the run."""
    path = workdir / "environment.json"
    try:
        starts = bounded_files.read_json(path)
    except (OSError, ValueError):
        starts = []
    starts = starts if isinstance(starts, list) else []
    atomic_files.write(path, json.dumps([*starts, describe()], indent=1) + "\n")


def _revision() -> str | None:
    """Returns the git revision of the code, with "-dirty" if files have changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
