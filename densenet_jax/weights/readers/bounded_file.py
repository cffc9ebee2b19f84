"""Bounded access to a file that nobody trusts.

Every reader in this package sees a file only through `BoundedFile`: each offset and size is checked
before a byte is read, and each tensor is charged to a budget before memory is taken for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import ml_dtypes
import numpy as np

MAX_TENSORS = 20_000
MAX_NAME = 512  # characters
MAX_RANK = 8
MAX_TOTAL_BYTES = 4 << 30  # the largest published DenseNet or RDNet takes 0.8 GB in float32
FREE_BYTES = 64 << 20  # what even a tiny file may unfold to
MAX_GROWTH = 16  # and beyond that, how many times its own size


class WeightsError(ValueError):
    """What is wrong with a weight file: one sentence with the file, the tensor and the remedy."""


def shown(name: object) -> str:
    """Returns a name out of a file in a form that is fit for an error message."""
    text = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(slots=True)
class Budget:
    """How many more bytes may be taken for the contents of one file."""

    left: int

    @classmethod
    def of_file(cls, size: int) -> "Budget":
        return cls(min(MAX_TOTAL_BYTES, FREE_BYTES + MAX_GROWTH * size))


@dataclass(slots=True)
class BoundedFile:
    """The bytes `[start, start + size)` of an open file: a whole file or a member of an archive."""

    path: str
    stream: BinaryIO
    start: int
    size: int
    budget: Budget

    def fail(self, message: str, tensor: object = None) -> WeightsError:
        """Returns, for the caller to raise, the error that names the file and the tensor."""
        where = "" if tensor is None else f"tensor {shown(tensor)}: "
        return WeightsError(f"{self.path}: {where}{message}")

    def check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.fail(
                f"{size} bytes are announced at offset {offset} where only "
                f"{max(0, self.size - max(0, offset))} exist; it is cut short or damaged, "
                "download or save it again"
            )

    def read(self, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes; for metadata, whose size the caller has bounded."""
        self.check(offset, size)
        self.stream.seek(self.start + offset)
        data = self.stream.read(size)
        if len(data) != size:
            raise self.fail("it became shorter while it was read")
        return data

    def part(self, offset: int, size: int) -> "BoundedFile":
        """Returns a source of some of these bytes, charged to the same budget."""
        self.check(offset, size)
        return BoundedFile(self.path, self.stream, self.start + offset, size, self.budget)

    def charge(self, size: int, tensor: object = None) -> None:
        """Takes `size` bytes from the budget; must come before the memory is allocated."""
        if size > self.budget.left:
            raise self.fail(
                "it unfolds to far more memory than a file of its size should, so it is damaged "
                "or malicious; get it from a source that you trust",
                tensor,
            )
        self.budget.left -= size

    def shape(self, tensor: object, shape: object) -> tuple[int, ...]:
        """Returns `shape` as a tuple once it is known to be one that an array can have."""
        if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
            raise self.fail(f"its shape must have at most {MAX_RANK} dimensions", tensor)
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in shape):
            raise self.fail("its shape has sizes that are negative or beyond any memory", tensor)
        if math.prod(max(n, 1) for n in shape) >= 1 << 48:
            raise self.fail("its shape is beyond any memory", tensor)
        return tuple(shape)

    def array(
        self,
        tensor: str,
        dtype: np.dtype,
        shape: Sequence[int],
        offset: int = 0,
        strides: Sequence[int] | None = None,
        big_endian: bool = False,
    ) -> np.ndarray:
        """Returns a tensor of these bytes as an array of its own: contiguous, writable.

        Args:
          tensor: its name, for messages.
          dtype: element type.
          shape: its shape, already checked by `BoundedFile.shape`.
          offset: bytes before its first element.
          strides: in elements, one per dimension; None if it is stored in row-major order.
          big_endian: whether each element's bytes are stored in that order.

        Raises:
          WeightsError: it does not lie within these bytes, or the budget is spent.
        """
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, dtype)
        span = count
        if strides is not None:
            if len(strides) != len(shape) or any(type(n) is not int or n < 0 for n in strides):
                raise self.fail("its strides do not fit its shape", tensor)
            span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if offset < 0 or offset + span * dtype.itemsize > self.size:
            raise self.fail(
                f"it reaches beyond the {self.size} bytes stored for it; "
                "the file is cut short or damaged, download or save it again",
                tensor,
            )
        # An expanded tensor has more elements than bytes, a sparse one spans more than it has.
        self.charge(max(span, count) * dtype.itemsize, tensor)
        raw = np.empty(span * dtype.itemsize, np.uint8)
        self.stream.seek(self.start + offset)
        if self.stream.readinto(raw) != raw.size:
            raise self.fail("the file became shorter while it was read", tensor)
        if big_endian:
            raw = raw.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1)
        steps = None
        if strides is not None:
            steps = [
                step * dtype.itemsize * (n > 1) for n, step in zip(shape, strides, strict=True)
            ]
        # A byte other than 0 and 1 is no valid bool, so those are compared, never reinterpreted.
        boolean = dtype == np.bool_
        view = np.ndarray(shape, np.uint8 if boolean else dtype, raw, strides=steps)
        if boolean:
            return np.ascontiguousarray(view != 0).reshape(shape)
        return view if steps is None else view.copy()


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
