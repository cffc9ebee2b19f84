"""What is needed to repeat a run and its dossier: commands, versions, and checksums to compare."""

import hashlib
import importlib.metadata
import json
import pathlib
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from densenet_jax.report import run_files
from densenet_jax.training.rundir import bounded_files, environment, run_outputs

COPIED = ("config.json", "classes.json", "environment.json", run_outputs.FILE)
VERSIONS = "versions.txt"


def describe(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    program: str,
    command: Sequence[str],
    variables: Any,
) -> dict[str, Any]:
    """Copies the files that a repetition needs into a dossier, and returns what to do with them.

    Args:
      workdir: the run's directory.
      folder: of the dossier.
      program: how the command line is called, "densenet-jax".
      command: the words after it that make this dossier, but for --workdir.
      variables: of the checkpoint.

    Returns:
      {"commands": [(what it does, text), ...], "weights": SHA-256 of the variables, "now":
      `environment.describe()`, "files": names of the copies}.
    """
    files = []
    for name in COPIED:
        if (workdir / name).is_file():
            shutil.copyfile(workdir / name, folder / name)
            files.append(name)
    versions = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
    (folder / VERSIONS).write_text("\n".join(sorted(versions, key=str.lower)) + "\n")
    steps = [
        ("trains the same network", ["train", f"--config={folder / 'config.json'}"]),
        *_calibration(workdir),
        ("writes this dossier", list(command)),
    ]
    again = f"--workdir={workdir}-again"
    return {
        "commands": [(about, f"{program} {shlex.join([*words, again])}") for about, words in steps],
        "weights": checksum(variables),
        "now": environment.describe(),
        "files": [*files, VERSIONS],
    }


def overrides(stored: ml_collections.ConfigDict, given: ml_collections.ConfigDict) -> list[str]:
    """Returns the flags that turn the configuration of a run into another one.

    Args:
      stored: of the run.
      given: the other one.
    """
    pair = [run_files.flatten(json.loads(config.to_json())) for config in (stored, given)]
    return [
        f"--config.{key}={tuple(value) if isinstance(value, list) else value}"
        for key, (_, value) in run_files.differences(pair)
    ]


def _calibration(workdir: pathlib.Path) -> list[tuple[str, list[str]]]:
    """Returns the command that calibrated the run; nothing if it was not calibrated."""
    try:
        record = bounded_files.read_json(workdir / run_outputs.FILE)
    except (OSError, ValueError):
        return []
    split = str(record.get("data", "")).rpartition("/")[2]
    words = ["calibrate", f"--config.data.eval_split={split}"]
    if rule := record.get("rule"):
        words.append(f"--thresholds={rule}")
    return [("scales the probabilities", words)]


def checksum(variables: Any) -> str:
    """Returns the SHA-256 of all variables in the order of their paths, with names and shapes."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(variables)):
        values = np.ascontiguousarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}\n"
        whole.update(name.encode() + values.tobytes())
    return whole.hexdigest()
