"""95 % intervals of scores by bootstrap (Efron and Tibshirani, 1993).

A sample draws as many examples as there are, with replacement; a score of the sample counts every
example as often as it was drawn.  If several examples belong to one patient, they are not
independent, and the sample draws patients with all their examples.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import sparse

from densenet_jax.scores import ranking, thresholds
from densenet_jax.scores.labels import ScoresError, columns

SAMPLES = 1000
LEVEL = 0.95
MAX_THREADS = 8
BLOCK, BLOCK_NUMBERS = 16, 2**22  # samples computed together, and numbers drawn for them
MAX_UNDEFINED = 0.01  # share of the samples without a score above which there is no interval

Interval = dict[str, Any]
Groups = Sequence[Hashable] | None


def bootstrap(
    score: Callable[[np.ndarray], np.ndarray],
    examples: int,
    groups: Groups = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Returns scores of samples of the examples, float64 [samples, K].

    Args:
      score: maps the number of times that each example counts, [N], to scores [K]; several threads
        call it.
      examples, groups, samples, seed: as of `in_blocks`.

    Raises:
      ScoresError: there are not as many groups as examples.
    """

    def of_each(counts: np.ndarray) -> np.ndarray:
        return np.stack([score(own) for own in counts.T], axis=1)

    return in_blocks(of_each, examples, groups, samples, seed)


def in_blocks(
    score: Callable[[np.ndarray], np.ndarray],
    examples: int,
    groups: Groups = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Returns scores of samples of the examples, float64 [samples, K], several samples at a time.

    Sample i depends on `seed`, i and the order of the examples alone.

    Args:
      score: maps the number of times that each example counts in each of B samples, whole numbers
        [N, B] (float32 where their sums are exact), to scores [K, B]; several threads call it.
      examples: N.
      groups: of each example its group, such as a patient; None, NaN or "": it is a group of its
        own.  None: every example is.
      samples: their number.
      seed: of the random numbers.

    Returns:
      the scores; with fewer than two groups nothing can be drawn, and all scores are NaN.

    Raises:
      ScoresError: there are not as many groups as examples.
    """
    group_of = group_numbers(groups, examples)
    count = examples if group_of is None else len(np.unique(group_of))
    if count < 2:
        return np.full((samples, len(score(np.ones((examples, 1))))), np.nan)
    largest = 1 if group_of is None else np.bincount(group_of).max()
    exact = np.float32 if count * largest < 2**23 else np.float64  # 2 x the sum is exact, too

    def block(numbers: range) -> np.ndarray:
        counts = np.empty((len(numbers), examples), exact)
        for row, sample in zip(counts, numbers, strict=True):
            drawn = np.random.default_rng((seed, sample)).integers(count, size=count)
            own = np.bincount(drawn, minlength=count)
            row[:] = own if group_of is None else own[group_of]
        return score(np.ascontiguousarray(counts.T))

    size = int(np.clip(BLOCK_NUMBERS // examples, 1, BLOCK))
    blocks = [range(i, min(i + size, samples)) for i in range(0, samples, size)]
    # NumPy and SciPy release the interpreter's lock for most of a block.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        return np.concatenate(list(pool.map(block, blocks)), axis=1).T


def interval(values: np.ndarray) -> Interval:
    """Returns the interval between the quantiles of a score of the samples.

    Args:
      values: [samples]; NaN: the sample had none, as it drew no example of one kind.

    Returns:
      {"low", "high", "undefined": number of samples without a score}.  Low and high are None if
      the samples cannot tell how far the score may be off: more than 1 % have no score (there are
      fewer than about five independent examples of one kind), or they do not differ (the score is
      perfect).
    """
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if undefined <= MAX_UNDEFINED * len(values):
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if low < high:
            return {"low": float(low), "high": float(high), "undefined": undefined}
    return {"low": None, "high": None, "undefined": undefined}


def of_ranking(
    scores: np.ndarray,
    targets: np.ndarray,
    groups: Groups = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the intervals of AUROC and average precision, and of their means over the labels.

    The time is about samples x (N + 8 x positives) x L x 1 ns on two cores.

    Args:
      scores, targets: as of `ranking.by_label`.
      groups, samples, seed: as of `bootstrap`.

    Returns:
      {"auroc", "average_precision": an interval for each label, [L], "mean_auroc",
      "mean_average_precision": the interval of the mean over the labels that have a score}.

    Raises:
      ScoresError: as `ranking.by_label` and `bootstrap`.
    """
    scores, targets = columns(scores, targets)
    ranked = [ranking.rank(*column) for column in zip(scores.T, targets.T, strict=True)]

    def score(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([label.auroc_and_precision(weights) for label in ranked])

    drawn = in_blocks(score, len(scores), groups, samples, seed).reshape(samples, -1, 2)
    defined = [label.defined for label in ranked]
    found: dict[str, Any] = {}
    for i, key in enumerate(("auroc", "average_precision")):
        found[key] = [interval(values) for values in drawn[:, :, i].T]
        some = any(defined)
        mean = drawn[:, defined, i].mean(axis=1) if some else np.full(samples, np.nan)
        found[f"mean_{key}"] = interval(mean)
    return found


def of_rates(
    p: np.ndarray,
    targets: np.ndarray,
    at: Sequence[float | None],
    groups: Groups = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, list[Interval]]:
    """Returns the intervals of the scores at a threshold.

    Args:
      p, targets: as of `thresholds.confusion`.
      at: the threshold of each label; None: it has none.
      groups, samples, seed: as of `bootstrap`.

    Returns:
      for each key of `thresholds.rates` an interval for each label, [L].

    Raises:
      ScoresError: as `thresholds.confusion` and `bootstrap`.
    """
    cells = thresholds.cells(p, targets, at)
    labels, numbers = np.nonzero(cells != thresholds.UNKNOWN)
    rows = labels * thresholds.UNKNOWN + cells[labels, numbers]
    shape = (len(cells) * thresholds.UNKNOWN, cells.shape[1])
    members = sparse.csr_array((np.ones(len(rows), np.float32), (rows, numbers)), shape=shape)

    def score(weights: np.ndarray) -> np.ndarray:
        counts = (members @ weights).reshape(len(cells), thresholds.UNKNOWN, -1)
        rates = thresholds.rates(counts.transpose(0, 2, 1).reshape(-1, thresholds.UNKNOWN))
        return np.concatenate([v.reshape(len(cells), -1) for v in rates.values()])

    drawn = in_blocks(score, len(np.asarray(p)), groups, samples, seed)
    by_key = drawn.reshape(samples, -1, len(cells)).transpose(1, 2, 0)
    return {
        key: [interval(values) for values in by_label]
        for key, by_label in zip(thresholds.RATES, by_key, strict=True)
    }


def of_means(
    values: np.ndarray, groups: Groups = None, samples: int = SAMPLES, seed: int = 0
) -> list[Interval]:
    """Returns the intervals of means over examples, such as top-1 accuracy or absolute errors.

    Args:
      values: a number for each example, [N] or [N, K]; NaN: the example does not count.
      groups, samples, seed: as of `bootstrap`.

    Returns:
      an interval for each of the K means.
    """
    values = np.asarray(values, np.float64)
    values = values.reshape(len(values), -1) if values.size else np.zeros((0, 1))
    counts = (~np.isnan(values)).astype(np.float64)
    sums = np.nan_to_num(values)

    def score(weights: np.ndarray) -> np.ndarray:
        total, found = (x.T @ weights.astype(np.float64) for x in (counts, sums))
        return np.where(total > 0, found / np.maximum(total, 1), np.nan)

    return [interval(v) for v in in_blocks(score, len(values), groups, samples, seed).T]


def of_classes(
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: int,
    groups: Groups = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, list[Interval]]:
    """Returns the intervals of recall, precision and F1 of every class.

    Args:
      labels, predicted: classes of the examples, integers [N].
      classes: their number.
      groups, samples, seed: as of `bootstrap`.

    Returns:
      {"recall", "precision", "f1": an interval for each class}.
    """
    numbers, right = np.arange(len(labels)), np.flatnonzero(labels == predicted)
    pairs = ((labels[right], right), (labels, numbers), (predicted, numbers))
    members = [
        sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), (classes, len(labels)))
        for rows, columns in pairs
    ]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, own, named = ((x @ weights).astype(np.float64) for x in members)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, an undefined score
            return np.concatenate([hits / own, hits / named, 2 * hits / (own + named)])

    drawn = in_blocks(score, len(labels), groups, samples, seed).reshape(samples, 3, classes)
    by_key = dict(zip(("recall", "precision", "f1"), drawn.transpose(1, 2, 0), strict=True))
    return {key: [interval(values) for values in by_class] for key, by_class in by_key.items()}


def group_numbers(groups: Groups, examples: int) -> np.ndarray | None:
    """Returns the number of each example's group, counted from 0, [N]; None without groups.

    Raises:
      ScoresError: there are not as many groups as examples.
    """
    if groups is None:
        return None
    if len(groups) != examples:
        raise ScoresError(
            f"there are {len(groups)} groups for {examples} examples; give each example one."
        )
    seen: dict[Hashable, int] = {}
    alone = [group is None or group == "" or group != group for group in groups]
    keys = [(True, i) if alone[i] else (False, group) for i, group in enumerate(groups)]
    return np.array([seen.setdefault(key, len(seen)) for key in keys])
