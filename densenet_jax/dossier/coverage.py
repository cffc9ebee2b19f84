"""Measures how often conformal sets and ranges contain the truth, on examples not used for limits.

Limits come from the split of the command `calibrate`.  Without it, or if that is the split of the
scores, each half of the examples (of whole groups) is measured with limits from the other half.
"""

from typing import Any, NamedTuple

import numpy as np

from densenet_jax.report.label_scores import samples
from densenet_jax.scores import conformal, intervals
from densenet_jax.tasks.task import bounds

ALPHA = 0.1


class Kind(NamedTuple):
    """A class, a label that is present or absent, or a number.

    Attributes:
      name: for people.
      strangeness: how unusual every example would be for this kind, [N].
      member: whether the example is of this kind, bool [N].
      kept: strangeness of the members of the split that sets the limit, [M]; None: halves of the
        examples set the limits.
    """

    name: str
    strangeness: np.ndarray
    member: np.ndarray
    kept: np.ndarray | None


Answers = tuple[np.ndarray, np.ndarray]  # probabilities or numbers [N, C], labels [N] or [N, C]


def measure(
    task: str,
    answers: Answers,
    names: list[str],
    groups: list[str] | None = None,
    kept: Answers | None = None,
    alpha: float = ALPHA,
) -> dict[str, Any]:
    """Returns the coverage of each class, label or number.

    Args:
      task: "classification", "multilabel" or "regression".
      answers: of the examples that are measured.
      names: of the classes, labels or numbers.
      groups: of the examples; None: each is a group of its own.
      kept: answers for the split that sets the limits; None: halves of the examples.
      alpha: share that may be missed.

    Returns:
      {"wanted": 1 - alpha, "halves": whether each half set the limits of the other, "rows":
      [{"name", "examples", "too_few" (whether the limit is infinite), "coverage", "interval",
      "limit" (the larger one)}, ...]; of classes and labels also "mean_size" (members of a set),
      and "empty" and "undecided" (shares of the sets without any, and with more than one)}.
    """
    kinds = _kinds(task, answers, names, kept)
    half = _half(groups, len(answers[0]))
    draws, rows, inside = samples(len(kinds), answers[0].size), [], []
    for kind in kinds:
        if kind.kept is None:
            both = [
                conformal.limit(kind.strangeness[kind.member & h], alpha) for h in (half, ~half)
            ]
            limit = np.where(half, both[1], both[0])
        else:
            both = [conformal.limit(kind.kept, alpha)]
            limit = np.full(len(half), both[0])
        hit = kind.strangeness <= limit
        inside.append(hit)
        own = np.flatnonzero(kind.member)
        apart = None if groups is None else [groups[i] for i in own]
        (margin,) = intervals.of_means(hit[own].astype(np.float64), apart, draws)
        rows.append(
            {
                "name": kind.name,
                "examples": len(own),
                "too_few": bool(np.isinf(both).any()),
                "coverage": float(hit[own].mean()) if len(own) else None,
                "interval": bounds(margin),
                "limit": max(both),
            }
        )
    record = {"wanted": 1 - alpha, "halves": kept is None, "rows": rows}
    if task == "regression" or not len(half):
        return record
    together = len(names) if task == "classification" else 2  # kinds of which one is true
    sizes = np.array(inside).reshape(-1, together, len(half)).sum(axis=1)
    shares = {"empty": float((sizes == 0).mean()), "undecided": float((sizes > 1).mean())}
    return {**record, "mean_size": float(sizes.mean()), **shares}


def _kinds(task: str, answers: Answers, names: list[str], kept: Answers | None) -> list[Kind]:
    """Returns the kinds of examples that get a limit of their own."""

    def of(values: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        values = values.astype(np.float64)
        if task == "classification":
            return [(1 - values[:, i], labels == i) for i in range(len(names))]
        if task == "regression":
            return [
                (np.nan_to_num(np.abs(v - y), nan=np.inf), ~np.isnan(y))
                for v, y in zip(values.T, labels.T, strict=True)
            ]
        pairs = zip(values.T, labels.T, strict=True)
        return [kind for p, y in pairs for kind in ((1 - p, y == 1), (p, y == 0))]

    if task == "multilabel":
        names = [f"{name}: {kind}" for name in names for kind in ("present", "absent")]
    own = of(*answers)
    limits: list[Any] = [None] * len(own)
    if kept is not None:
        limits = [strangeness[member] for strangeness, member in of(*kept)]
    return [Kind(n, *s, k) for n, s, k in zip(names, own, limits, strict=True)]


def _half(groups: list[str] | None, count: int) -> np.ndarray:
    """Returns which examples are in the first half, of whole groups drawn at random, bool [N]."""
    numbers = intervals.group_numbers(groups, count)
    numbers = np.arange(count) if numbers is None else numbers
    order = np.random.default_rng(0).permutation(numbers.max(initial=-1) + 1)
    return order[numbers] < len(order) / 2
