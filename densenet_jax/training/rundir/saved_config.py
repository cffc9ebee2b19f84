"""Reads the config.json of a run, also of an older version with fewer or renamed keys."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from densenet_jax.configs import default
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import bounded_files

# Keys of `data` that are taken from the initial weights if a configuration leaves them open.
PREPROCESSING = ("image_size", "eval_crop", "interpolation", "mean", "std", "fit", "dtype")


def load(path: str | pathlib.Path) -> ConfigDict:
    """Returns a stored configuration, locked, with the types of the defaults.

    Missing keys get their defaults, which reproduce the behaviour from before a key was added.

    Args:
      path: the file config.json.

    Raises:
      CheckpointError: the file does not exist, or is not the configuration of a run.
    """
    config = default.get_config().lock()
    try:
        config.update(_renamed(bounded_files.read_json(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path} is not the configuration of a run: {e}") from None
    return config


def _renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with old keys replaced by their current names."""
    optimizer = stored.get("optimizer", {})
    if "warmup_epochs" in optimizer:  # the key before durations had units
        optimizer["warmup"] = f"{optimizer.pop('warmup_epochs')} epochs"
    data = stored.get("data", {})
    if data.get("image_size") is not None:  # of a run from before these keys, which did as follows
        data.setdefault("fit", "crop")
        data.setdefault("dtype", "uint8")
    return stored


def settled(config: ConfigDict, workdir: pathlib.Path) -> tuple[ConfigDict, bool]:
    """Returns a configuration completed from its run, and whether the run can be resumed.

    A run that starts from weights takes their preprocessing.  A resumed run reads it from its
    config.json instead, because the weights may have been deleted.

    Args:
      config: the configuration.
      workdir: the run's directory, which may not exist yet.

    Returns:
      the configuration, whose open keys (None) of `data`, and an open type of the computation
      ("auto"), are set if the run has them; and whether
      the run has checkpoints and its complete preprocessing.
    """
    has_checkpoints = any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))
    if not has_checkpoints or not (workdir / "config.json").is_file():
        return config, False
    config, before = config.copy_and_resolve_references(), load(workdir / "config.json")
    with config.unlocked():
        for key, value in before.data.items():
            if config.data[key] is None:
                config.data[key] = value
        if config.model.dtype == "auto":
            config.model.dtype = before.model.dtype
    complete = all(config.data[key] is not None for key in PREPROCESSING)
    return config, complete
