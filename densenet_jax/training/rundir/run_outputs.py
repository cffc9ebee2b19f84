"""What the outputs of a run's network mean, with the calibration that is stored in its directory.

`calibration.json` belongs to one checkpoint and to the run's labels. For another checkpoint it is
left out, with a warning; anything else that does not fit is an error.
"""

import dataclasses
import json
import logging
import math
import pathlib
from typing import Any

import ml_collections

from densenet_jax import atomic_files
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training import settings
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import bounded_files, run_classes

FILE = "calibration.json"

_log = logging.getLogger(__name__)


def read(workdir: str, config: ml_collections.ConfigDict, step: int) -> Outputs:
    """Returns how the outputs of a checkpoint of a run become probabilities or numbers.

    Args:
      workdir: the run's directory.
      config: its configuration.
      step: of the checkpoint.

    Raises:
      CheckpointError: calibration.json is damaged, or of other labels than the run's.
    """
    plain, path = settings.make_task(config).outputs, pathlib.Path(workdir) / FILE
    if not path.exists():
        return plain
    record = _record(path)
    names = run_classes.class_names(workdir)
    if names is not None and (apart := run_classes.difference(record["labels"], names)):
        raise CheckpointError(
            f"{path} is of other labels than this run's: {apart}; remove it, or calibrate again."
        )
    if record["step"] != step:
        _log.warning(
            "%s is of step %s, not of step %d, and is not used: calibrate again.",
            *(path, record["step"], step),
        )
        return plain
    return dataclasses.replace(
        plain,
        scale=tuple(record["scale"]),
        shift=tuple(record["shift"]),
        thresholds=tuple(record["thresholds"]),
    )


def split(workdir: str) -> str:
    """Returns on which split a run was calibrated, "chest/validation"; "unknown" if not stored.

    Raises:
      CheckpointError: calibration.json is missing or damaged.
    """
    return str(_record(pathlib.Path(workdir) / FILE).get("data", "unknown"))


def write(workdir: str, record: dict[str, Any]) -> pathlib.Path:
    """Writes calibration.json, see `evaluation.calibrate.fit`; returns its path."""
    path = pathlib.Path(workdir) / FILE
    atomic_files.write(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def _record(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of calibration.json.

    Raises:
      CheckpointError: it cannot be read, or is not such a record.
    """
    try:
        record = bounded_files.read_json(path)
        labels = record["labels"]
        if not isinstance(labels, list) or not isinstance(record["step"], int):
            raise ValueError
        for key in ("scale", "shift", "thresholds"):
            values = record[key]
            if len(values) not in (0, 1, len(labels)) or not all(map(_is_number, values)):
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise CheckpointError(f"{path} is damaged; remove it, or calibrate again.") from None
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
