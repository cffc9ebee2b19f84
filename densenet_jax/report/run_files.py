"""Reads a run's directory for a report; missing and incomplete files are left out."""

import dataclasses
import json
import pathlib
from typing import Any

from densenet_jax.configs import default
from densenet_jax.report import predictions
from densenet_jax.report.predictions import Predictions
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.task import Task
from densenet_jax.training.rundir import metrics_log

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
      records: of metrics.jsonl, in order: [{"step", "split", "epoch", "seconds", ...}, ...].
      evaluation: the content of evaluation.json; {} if the run was never evaluated.
      environments: machine and versions, one dict for each start of the run.
      insight: the content of insight.json, see `analysis.examine`; {} if there is none.
      predictions: None if there are none.
    """

    path: pathlib.Path
    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: dict[str, Any]
    environments: list[dict[str, Any]]
    insight: dict[str, Any]
    predictions: Predictions | None

    def of(self, split: str) -> list[dict[str, Any]]:
        """Returns the records of a split, "train" or "eval"."""
        return [record for record in self.records if record["split"] == split]

    def best(self) -> dict[str, Any] | None:
        """Returns the record of the best evaluation by the task's best metric; None without one."""
        best = self.task.best
        scored = [record for record in self.of("eval") if best.value(record) is not None]
        return max(scored, key=best.score, default=None)

    @property
    def task(self) -> Task:
        """The task of the network; a configuration without one is a classification.

        Configurations of earlier versions have no task.

        Raises:
          ReportError: the configuration names an unknown task or metric.
        """
        try:
            return find_task(
                self.config.get("task", "classification"),
                self.config.get("best_metric", ""),
                self.config.get("loss", ""),
                self.config.get("data.target_mean") or (),
                self.config.get("data.target_std") or (),
            )
        except (ValueError, TypeError) as e:
            raise ReportError(f"{self.path / 'config.json'}: {e}") from None

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed, so that their metrics are not those of images."""
        return any(self.config.get(f"augment.{key}") for key in ("mixup", "cutmix"))

    def seconds(self) -> float:
        """Returns the duration of the run in seconds, summed over all its starts."""
        total, before = 0.0, 0.0
        for seconds in (r["seconds"] for r in self.records if is_number(r.get("seconds"))):
            # After a resume, the clock starts again at 0.
            total += seconds - before if seconds >= before else seconds
            before = seconds
        return total


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
    environments = _json(path / "environment.json", [])
    return Run(
        path=path,
        name=name or path.resolve().name,
        config=flatten(config),
        records=[r for r in metrics_log.read(path / "metrics.jsonl") if "split" in r],
        evaluation=_json(path / "evaluation.json", {}),
        environments=[e for e in environments if isinstance(e, dict)],
        insight=_json(path / "insight.json", {}),
        predictions=predictions.load(path),
    )


def is_number(value: Any) -> bool:
    """Returns whether a value from JSON is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    """Returns the content of a JSON file, or `otherwise` if it is unreadable or of another type."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise
