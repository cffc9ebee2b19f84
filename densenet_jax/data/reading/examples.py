"""One example, ready for a batch; or, where it cannot be read, the next one of the split.

A week-long run should not die of one broken file or of a disk that goes away for a moment.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from densenet_jax.data.reading.decoding import ImageError
from densenet_jax.data.sources.source import DataError, Source

_log = logging.getLogger(__name__)
RETRY_DELAYS = (0.1, 0.5, 2.0, 5.0)  # seconds between attempts to read a record
NEIGHBOURS = 10  # examples tried in one place before the data set is given up
_named: set[str] = set()  # by this process, so that each broken example is named once


def read(source: Source, index: int) -> dict[str, Any]:
    """Returns example `index`, trying again where the storage fails.

    Raises:
      ImageError: the record is corrupt, or the storage keeps failing.
      DataError: its label is none of the classes.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            example = source.examples[index]
            break
        except (OSError, RuntimeError) as e:  # ArrayRecord's reader raises RuntimeError
            if "orrupted" in str(e):  # a wrong checksum stays wrong
                raise ImageError(f"a corrupt record: {e}") from e
            if delay is None:
                raise ImageError(f"still unreadable after {len(RETRY_DELAYS)} retries: {e}") from e
        time.sleep(delay)
    label = example["label"]
    if not 0 <= label < source.num_classes:
        raise DataError(
            f"{source.describe(index)} has the label {label}, but there are "
            f"{source.num_classes} classes (0 to {source.num_classes - 1})."
        )
    return example


def read_together(source: Source, numbers: range) -> Source:
    """Returns the source with some examples already read, which is much faster than one by one.

    Where that fails, or the source has no way to do so, it is returned as it is.
    """
    many = getattr(source.examples, "__getitems__", None)
    if many is None:
        return source
    try:
        return dataclasses.replace(source, examples=_ReadAhead(source.examples, numbers))
    except (OSError, RuntimeError):  # one corrupt record fails them all
        return source


class _ReadAhead(Sequence):
    def __init__(self, examples, numbers: range):
        self._examples, self._first = examples, numbers[0]
        self._read = examples.__getitems__(list(numbers))

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, i):
        ahead = 0 <= i - self._first < len(self._read)
        return self._read[i - self._first] if ahead else self._examples[i]


def load(
    source: Source, index: int, prepare: Callable[..., np.ndarray], strict: bool, out: np.ndarray
) -> tuple[int, int]:
    """Writes an example's image; returns its label, and how many unreadable were passed over.

    In place of an unreadable example comes the next of the split, so that the same data give the
    same batches however they are read.

    Args:
      prepare: takes the example's `image`, and `out`, where it may write the image for the batch;
        returns that image.
      strict: raise for an unreadable example instead.
      out: where the image goes.

    Raises:
      DataError: an example is unreadable and `strict`, or many in a row are.
    """
    for skipped in range(NEIGHBOURS):
        candidate = (index + skipped) % len(source)
        try:
            example = read(source, candidate)
            image = prepare(example["image"], out=out)
            if not np.may_share_memory(image, out):  # OpenCV returns another object, same memory
                out[...] = image
            return example["label"], skipped
        except ImageError as e:
            name = source.describe(candidate)
            if strict:
                raise DataError(
                    f"{name}: {e}. Mend or remove it, or pass --config.data.strict=False to go on "
                    "without it."
                ) from e
            if name not in _named:
                _named.add(name)
                _log.warning("Passing over %s: %s", name, e)
            error = e
    raise DataError(
        f"{NEIGHBOURS} examples in a row cannot be read, from {source.describe(index)} on "
        f"(the last: {error}). Check the disk or mount, and the data set."
    )
