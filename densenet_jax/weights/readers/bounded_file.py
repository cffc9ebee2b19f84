"""Safe access to an untrusted file, for all readers of this package.

The readers access a file only through `BoundedFile`. It checks every offset and size before it
reads a byte, and charges every tensor to a memory budget before it allocates the tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase

import ml_dtypes
import numpy as np

MAX_TENSORS = 20_000
MAX_NAME = 512  # characters
MAX_RANK = 8
MAX_TOTAL_BYTES = 4 << 30  # the largest published DenseNet or RDNet takes 0.8 GB in float32
# A file may expand to FREE_BYTES + MAX_GROWTH times its own size in memory.
FREE_BYTES = 64 << 20
MAX_GROWTH = 16


class WeightsError(ValueError):
    """A weight file cannot be used; the message names the file, the tensor and the remedy."""


def shown(name: object) -> str:
    """Returns a name from a file, quoted and shortened to 100 characters for an error message."""
    text = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(slots=True)
class Budget:
    """The number of bytes that may still be allocated for the contents of one file."""

    left: int

    @classmethod
    def of_file(cls, size: int) -> "Budget":
        """Returns the initial budget of a file of `size` bytes."""
        return cls(min(MAX_TOTAL_BYTES, FREE_BYTES + MAX_GROWTH * size))


@dataclass(slots=True)
class BoundedFile:
    """The bytes `[start, start + size)` of an open file: the whole file or a part of it.

    Attributes:
      path: the file's path, for error messages.
      stream: the open file.
      start: position of the first byte in `stream`.
      size: number of bytes.
      budget: the memory budget, shared by all parts of one file.
    """

    path: str
    stream: BufferedIOBase
    start: int
    size: int
    budget: Budget

    def fail(self, message: str, tensor: object = None) -> WeightsError:
        """Returns an error that names the file and the tensor; the caller raises it."""
        where = "" if tensor is None else f"tensor {shown(tensor)}: "
        return WeightsError(f"{self.path}: {where}{message}")

    def check(self, offset: int, size: int) -> None:
        """Raises WeightsError unless these bytes contain `size` bytes at `offset`."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.fail(
                f"{size} bytes are expected at offset {offset}, but only "
                f"{max(0, self.size - max(0, offset))} exist; the file is cut short or damaged, "
                "so download or save it again"
            )

    def read(self, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes of metadata; the caller must have limited `size`."""
        self.check(offset, size)
        self.stream.seek(self.start + offset)
        data = self.stream.read(size)
        if len(data) != size:
            raise self.fail("the file became shorter while it was read; read it again")
        return data

    def part(self, offset: int, size: int) -> "BoundedFile":
        """Returns `size` of these bytes as a file of their own, charged to the same budget."""
        self.check(offset, size)
        return BoundedFile(self.path, self.stream, self.start + offset, size, self.budget)

    def charge(self, size: int, tensor: object = None) -> None:
        """Subtracts `size` bytes from the budget; call it before the memory is allocated."""
        if size > self.budget.left:
            raise self.fail(
                "the file expands to far more memory than a file of its size should, so it is "
                "damaged or malicious; get it from a source that you trust",
                tensor,
            )
        self.budget.left -= size

    def shape(self, tensor: object, shape: object) -> tuple[int, ...]:
        """Returns `shape` as a tuple.

        Raises:
          WeightsError: an array cannot have this shape.
        """
        if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
            raise self.fail(f"its shape is not a list of at most {MAX_RANK} dimensions", tensor)
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in shape):
            raise self.fail(
                "its shape has sizes that are negative, not integers or too large", tensor
            )
        if math.prod(max(n, 1) for n in shape) >= 1 << 48:
            raise self.fail("its shape is too large for any memory", tensor)
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
        """Returns a tensor stored in these bytes as a new array, contiguous and writable.

        Args:
          tensor: name of the tensor, for error messages.
          dtype: element type.
          shape: shape of the tensor, already checked by `BoundedFile.shape`.
          offset: bytes before the first element.
          strides: distance between neighbours along each dimension, in elements; None: the tensor
            is stored in row-major order.
          big_endian: whether the elements are stored with the most significant byte first.

        Raises:
          WeightsError: the tensor reaches beyond these bytes, its strides are invalid, or the
            memory budget is spent.
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
                "the file is cut short or damaged, so download or save it again",
                tensor,
            )
        # An expanded tensor (stride 0) has more elements than stored bytes; a tensor with large
        # strides spans more bytes than its elements take.
        self.charge(max(span, count) * dtype.itemsize, tensor)
        raw = np.empty(span * dtype.itemsize, np.uint8)
        self.stream.seek(self.start + offset)
        if self.stream.readinto(raw.data) != raw.size:
            raise self.fail("the file became shorter while it was read; read it again", tensor)
        if big_endian:
            raw = np.ascontiguousarray(raw.reshape(-1, dtype.itemsize)[:, ::-1]).reshape(-1)
        steps = None
        if strides is not None:
            steps = [
                step * dtype.itemsize * (n > 1) for n, step in zip(shape, strides, strict=True)
            ]
        # A byte other than 0 and 1 is not a valid bool: compare the bytes with 0 instead of
        # reinterpreting them.
        boolean = dtype == np.bool_
        view = np.ndarray(shape, np.uint8 if boolean else dtype, raw, strides=steps)
        if boolean:
            return np.ascontiguousarray(view != 0).reshape(shape)
        return view if steps is None else view.copy()


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
