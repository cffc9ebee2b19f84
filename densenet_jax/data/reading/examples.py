"""Loads one example into a batch; if it is unreadable, loads the next one of the split.

One damaged file, or a disk that is unavailable for a moment, should not end a run of a week.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from densenet_jax.data.reading.limits import ImageError, KindError
from densenet_jax.data.sources.source import DataError, Source

_log = logging.getLogger(__name__)
RETRY_DELAYS = (0.1, 0.5, 2.0, 5.0)  # seconds between attempts to read a record
NEIGHBOURS = 10  # number of examples tried in one place before the data set is reported as broken
_named: set[str] = set()  # unreadable examples that this process has logged, each of them once


class Prepare(Protocol):
    """Decodes and crops an image for a batch."""

    def __call__(self, image: Any, *, out: np.ndarray) -> np.ndarray:
        """Returns the image, [H, W, C].

        Args:
          image: encoded, [h, w, c], or raw: see `data.sources.source`.
          out: memory of the result's shape, in which the result may be written.
        """


def read(source: Source, index: int) -> dict[str, Any]:
    """Returns example `index`, and tries again if the storage fails.

    Returns:
      {"image": bytes or [H, W, C], "label": see `data.sources.source`}.

    Raises:
      ImageError: the record is corrupt, or still unreadable after the last retry.
      DataError: the label is not one that the split can have.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            example = source.examples[index]
            break
        except (OSError, RuntimeError) as e:  # ArrayRecord's reader raises RuntimeError
            if "orrupted" in str(e):  # a wrong checksum: retries do not help
                raise ImageError(f"the record is corrupt: {e}") from e
            if delay is None:
                raise ImageError(f"still unreadable after {len(RETRY_DELAYS)} retries: {e}") from e
        time.sleep(delay)
    _check_label(source, index, example["label"])
    return example


def _check_label(source: Source, index: int, label: Any) -> None:
    """Raises DataError for a label that the split cannot have."""
    count = source.num_classes
    if source.task == "classification":
        if 0 <= label < count:
            return
        allowed = f"there are {count} classes (0 to {count - 1})"
    else:
        values, unit = np.asarray(label), source.task == "multilabel"
        in_range = np.isnan(values) | (
            (values >= 0) & (values <= 1) if unit else np.isfinite(values)
        )
        if values.shape == (count,) and in_range.all():
            return
        kind = "from 0 to 1, or NaN where it is unknown" if unit else "finite, or NaN"
        allowed = f"a label of the task {source.task} is {count} numbers, each {kind}"
    raise DataError(
        f"{source.describe(index)} has the label {label}, but {allowed}. Correct the data set, or "
        "choose a split with labels."
    )


def read_together(source: Source, numbers: range) -> Source:
    """Returns the source with some examples already read, which is much faster than one by one.

    The source itself is returned if its examples have no `__getitems__`, or if that fails.

    Args:
      source: the split.
      numbers: consecutive numbers of the examples to read, at least one.
    """
    if not hasattr(source.examples, "__getitems__"):
        return source
    try:
        return dataclasses.replace(source, examples=_ReadAhead(source.examples, numbers))
    except (OSError, RuntimeError):  # one corrupt record makes the whole call fail
        return source


class _ReadAhead(Sequence[dict[str, Any]]):
    """The examples of a source, of which those in `numbers` are in memory."""

    def __init__(self, examples: Any, numbers: range):
        self._examples, self._first = examples, numbers[0]
        self._read = examples.__getitems__(list(numbers))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: Any) -> Any:
        ahead = 0 <= i - self._first < len(self._read)
        return self._read[i - self._first] if ahead else self._examples[i]


def load(
    source: Source, index: int, prepare: Prepare, strict: bool, out: np.ndarray
) -> tuple[Any, int]:
    """Writes the image of an example to `out` and returns (label, number of skipped examples).

    The next example of the split replaces an unreadable one, so that the same data give the same
    batches with any number of threads and processes.

    Args:
      source: the split.
      index: number of the example.
      prepare: decodes and crops the image.
      strict: whether to raise DataError for an unreadable example instead of replacing it.
      out: the image is written here, [H, W, C].

    Raises:
      DataError: an example is unreadable and `strict` is set, or 10 in a row are unreadable, a
        label is not one that the split can have, or an image has other channels or another type.
    """
    for skipped in range(NEIGHBOURS):
        candidate = (index + skipped) % len(source)
        try:
            example = read(source, candidate)
            image = prepare(example["image"], out=out)
            if not np.may_share_memory(image, out):  # OpenCV may return another array of it
                out[...] = image
            return example["label"], skipped
        except KindError as e:
            raise DataError(
                f"{source.describe(candidate)}: {e}, unlike the first image of the data set. "
                "Convert the images to the same kind, or set data.channels and data.dtype."
            ) from e
        except ImageError as e:
            name = source.describe(candidate)
            if strict:
                raise DataError(
                    f"{name}: {e}. Repair or remove it, or pass --config.data.strict=False to use "
                    "the next example instead."
                ) from e
            if name not in _named:
                _named.add(name)
                _log.warning("Skipping %s: %s", name, e)
            error = e
    raise DataError(
        f"{NEIGHBOURS} examples in a row cannot be read, from {source.describe(index)} on (the "
        f"last error: {error}). Check the disk or mount, and the data set."
    )
