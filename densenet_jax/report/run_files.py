"""Reads a run's directory for a report; missing and incomplete files are left out."""

import dataclasses
import functools
import json
import logging
import pathlib
from typing import Any

from densenet_jax.configs import default
from densenet_jax.report import estimates, history, predictions
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.history import History
from densenet_jax.report.predictions import Predictions
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.task import Task
from densenet_jax.training.rundir import bounded_files

logger = logging.getLogger(__name__)
ABSENT = "—"  # stands for a missing value in the page


class ReportError(ValueError):
    """There is no run to report on, or the page cannot be written."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run's directory.

    Attributes:
      path: of the directory.
      name: of the run in the page.
      config: the flattened configuration, {"data.name": value, ...}.
      task: of the network; a configuration without one, of an earlier version, is a classification.
      history: of metrics.jsonl.
      evaluation: the content of evaluation.json; {} if the run was never evaluated.
      environments: machine and versions, one dict for each start of the run.
      insight: the content of insight.json, see `analysis.examine`; {} if there is none.
      predictions: of the model for every example of a split; None if there are none, or if they
        are of another task.
    """

    path: pathlib.Path
    name: str
    config: dict[str, Any]
    task: Task
    history: History
    evaluation: dict[str, Any]
    environments: list[dict[str, Any]]
    insight: dict[str, Any]
    predictions: Predictions | Estimates | None

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed, so that their metrics are not those of images."""
        return any(self.config.get(f"augment.{key}") for key in ("mixup", "cutmix"))


def read(workdir: str | pathlib.Path, name: str = "") -> Run:
    """Returns the content of a run's directory; the run may be at any point, even at its start.

    Args:
      workdir: the directory.
      name: of the run in the page; "": the directory's name.

    Raises:
      ReportError: the directory does not hold a run.
    """
    path = pathlib.Path(workdir)
    config = _json(path / "config.json", {})
    if not config:
        raise ReportError(
            f"{workdir} is not the directory of a run (it has no readable config.json); give the "
            "--workdir of a training run."
        )
    environments, flat = _json(path / "environment.json", []), flatten(config)
    task = _task(path, flat)
    return Run(
        path=path,
        name=name or path.resolve().name,
        config=flat,
        task=task,
        history=history.read(path / "metrics.jsonl", task.best),
        evaluation=_json(path / "evaluation.json", {}),
        environments=[e for e in environments if isinstance(e, dict)],
        insight=_json(path / "insight.json", {}),
        predictions=_answers(path, str(flat.get("task", "classification"))),
    )


def _task(path: pathlib.Path, config: dict[str, Any]) -> Task:
    """Returns the task of a run with a flattened configuration.

    Raises:
      ReportError: the configuration names an unknown task, metric or loss.
    """
    try:
        return find_task(
            config.get("task", "classification"),
            config.get("best_metric", ""),
            config.get("loss", ""),
            config.get("data.target_mean") or (),
            config.get("data.target_std") or (),
        )
    except (ValueError, TypeError) as e:
        raise ReportError(f"{path / 'config.json'}: {e}") from None


def _answers(path: pathlib.Path, task: str) -> Predictions | Estimates | None:
    """Returns a run's stored answers of its task; None if there are none."""
    try:
        stat = (path / predictions.FILE).stat()
    except OSError:
        return None
    return _load(path, task, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _load(path: pathlib.Path, task: str, *stamp: int) -> Predictions | Estimates | None:
    """Reads the file once for all pages of a run, so that what is computed from it can be kept."""
    return predictions.load(path) if task == "classification" else estimates.load(path, task)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested configuration as {"data.name": ..., ...}, in order.

    Args:
      tree: the configuration.
      prefix: is put before all keys.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def defaults() -> dict[str, Any]:
    """Returns configs/default.py, flattened."""
    config = default.get_config()
    return flatten(json.loads(config.to_json()))  # tuples become lists, as in config.json


def differences(configs: list[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Returns (key, values) for each key whose values differ between flattened configurations.

    Values are in the order of the configurations; a missing value is `ABSENT`.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key, ABSENT) for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _json(path: pathlib.Path, otherwise: Any) -> Any:
    """Returns the content of a JSON file; `otherwise` without the file.

    A file that is unreadable or of another type is left out with a warning.
    """
    try:
        value = bounded_files.read_json(path)
        if not isinstance(value, type(otherwise)):
            raise ValueError(f"it is not a {type(otherwise).__name__}")
        return value
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as e:
        logger.warning("%s cannot be read and is left out: %s.", path, e)
    return otherwise
