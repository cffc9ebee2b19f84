"""A run's config.json as a configuration: also of a run that knew fewer keys, or other names."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from densenet_jax.configs import default
from densenet_jax.training.errors import CheckpointError

# Keys of `data` that weights settle where a configuration leaves them open.
PREPROCESSING = ("image_size", "eval_crop", "interpolation", "mean", "std")


def load(path: str | pathlib.Path) -> ConfigDict:
    """Returns a stored configuration, locked, with the types of the defaults.

    Keys that it lacks have their defaults, which do what was done before there was the key.

    Raises:
      CheckpointError: it is not there, or not the configuration of a run.
    """
    config = default.get_config().lock()
    try:
        config.update(_renamed(json.loads(pathlib.Path(path).read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} is not the configuration of a run: {e}") from None
    return config


def _renamed(stored: dict[str, Any]) -> dict[str, Any]:
    optimizer = stored.get("optimizer", {})
    if "warmup_epochs" in optimizer:  # until durations had units
        optimizer["warmup"] = f"{optimizer.pop('warmup_epochs')} epochs"
    return stored


def settled(config: ConfigDict, workdir: pathlib.Path) -> tuple[ConfigDict, bool]:
    """Returns a configuration with what its run has settled, and whether the run has checkpoints.

    A run that starts from weights takes their preprocessing.  When it is resumed, it is taken from
    its config.json: the weights may be gone.
    """
    has_checkpoints = any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))
    if not has_checkpoints or not (workdir / "config.json").is_file():
        return config, False
    config, before = config.copy_and_resolve_references(), load(workdir / "config.json")
    with config.unlocked():
        for key, value in before.data.items():
            if config.data[key] is None:
                config.data[key] = value
    complete = all(config.data[key] is not None for key in PREPROCESSING)
    return config, complete
