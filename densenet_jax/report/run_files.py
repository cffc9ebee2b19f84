"""A run's directory as a report needs it; what is missing, torn or still growing is left out."""

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

ABSENT = "—"


class ReportError(ValueError):
    """There is nothing to report on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's directory holds.

    Attributes:
      path: of the directory.
      name: to tell runs apart in a page.
      config: key with dots -> value.
      records: of metrics.jsonl, in order.
      evaluation: of evaluation.json; {} if it was never evaluated.
      environments: one for each start of the run.
      insight: of insight.json, see `examine`; {} if the model was not examined.
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
        """Returns the records of `train` or `eval`."""
        return [record for record in self.records if record["split"] == split]

    def best(self) -> dict[str, Any] | None:
        """Returns the best evaluation by the task's best metric; None before the first."""
        best = self.task.best
        scored = [record for record in self.of("eval") if best.value(record) is not None]
        return max(scored, key=best.score, default=None)

    @property
    def task(self) -> Task:
        """What the network was trained for; runs of earlier versions are classifications."""
        try:
            return find_task(
                self.config.get("task", "classification"), self.config.get("best_metric", "")
            )
        except (ValueError, TypeError) as e:
            raise ReportError(f"{self.path / 'config.json'}: {e}") from None

    def seconds(self) -> float:
        """Returns how long the run has taken, over all its starts."""
        total, before = 0.0, 0.0
        for seconds in (r["seconds"] for r in self.records if is_number(r.get("seconds"))):
            # A resumed run begins to count again.
            total += seconds - before if seconds >= before else seconds
            before = seconds
        return total


def read(workdir: str | pathlib.Path, name: str = "") -> Run:
    """Returns a run, which may still be going on or have barely begun.

    Raises:
      ReportError: the directory holds no run.
    """
    path = pathlib.Path(workdir)
    config = _json(path / "config.json", {})
    if not config:
        raise ReportError(
            f"{workdir} is not the directory of a run (it has no readable config.json); give the "
            "--workdir of a training."
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
    return isinstance(value, int | float) and not isinstance(value, bool)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested configuration as {"data.name": ..., ...}, in order."""
    flat = {}
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
    """Returns the keys whose values are not the same in all configurations, with the values."""
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key, ABSENT) for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _json(path: pathlib.Path, otherwise: Any) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise
