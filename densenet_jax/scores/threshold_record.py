"""Thresholds as they are stored beside weights; only a model with the same labels accepts them."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_jax.scores.labels import ScoresError
from densenet_jax.scores.thresholds import choose, confusion

FORMAT = 1  # of the record in JSON


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of a model, and where they come from.

    Attributes:
      labels: names of the labels.
      rule: as of `thresholds.choose`.
      split: the examples on which they were chosen: "chest/validation".
      thresholds: of each label; None: it has none.
      reached: what they reach on these examples, as `thresholds.confusion` returns it; other
        examples usually reach a little less.
    """

    labels: tuple[str, ...]
    rule: str
    split: str
    thresholds: tuple[float | None, ...]
    reached: tuple[dict[str, Any], ...]

    @classmethod
    def of(
        cls, p: np.ndarray, targets: np.ndarray, labels: Sequence[str], rule: str, split: str
    ) -> "Thresholds":
        """Returns the thresholds that a rule chooses, see `thresholds.choose`, and what they reach.

        Raises:
          ScoresError: there are not as many names as labels, or as `thresholds.choose`.
        """
        at = choose(p, targets, rule)
        if len(labels) != len(at):
            raise ScoresError(f"there are {len(labels)} names for {len(at)} labels.")
        return cls(tuple(labels), rule, split, tuple(at), tuple(confusion(p, targets, at)))

    def to_json(self) -> str:
        """Returns the record as text."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, labels: Sequence[str], name: str) -> "Thresholds":
        """Returns the record in a text.

        Args:
          text: the content of a file, which may come from anybody.
          labels: names of the model's labels.
          name: of the file, for messages.

        Raises:
          ScoresError: the text is no such record, or its labels are not those of the model.
        """
        try:
            record = json.loads(text)
            version, own = record.pop("format"), record["labels"]
            found = cls(**{key: _frozen(value) for key, value in record.items()})
            if not (isinstance(found.rule, str) and isinstance(found.split, str)):
                raise TypeError
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise ScoresError(f"{name} is not a record of thresholds; choose them again.") from None
        if version != FORMAT:
            raise ScoresError(
                f"{name} has the format {str(version)[:40]}; this version reads format {FORMAT}."
            )
        _check_labels(own, labels, name)
        for values, is_right in ((found.thresholds, _is_threshold), (found.reached, _is_row)):
            right = isinstance(values, tuple) and all(map(is_right, values))
            if not right or len(values) != len(labels):
                raise ScoresError(
                    f"{name}: each label needs one threshold, a finite number or null, and what it "
                    "reached; choose the thresholds again."
                )
        return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_threshold(value: Any) -> bool:
    """Returns whether a value of JSON is a finite number or null."""
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _is_row(value: Any) -> bool:
    """Returns whether a value of JSON is an object of finite numbers and null."""
    return isinstance(value, dict) and all(map(_is_threshold, value.values()))


def _check_labels(own: Any, labels: Sequence[str], name: str) -> None:
    """Raises ScoresError, with the first difference, unless a record is of the model's labels."""
    if not isinstance(own, list) or len(own) != len(labels):
        count = len(own) if isinstance(own, list) else "no"
        raise ScoresError(
            f"{name} has {count} labels and the model {len(labels)}; choose thresholds with this "
            "model."
        )
    for i, (theirs, ours) in enumerate(zip(own, labels, strict=True)):
        if theirs != ours:
            raise ScoresError(
                f"{name} is of other labels: its label {i} is {str(theirs)[:100]!r}, the model's "
                f"{ours!r}; choose thresholds with this model."
            )
