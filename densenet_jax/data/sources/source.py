"""The interface of a data set: examples by number, and what their labels mean.

An example is `{"image": bytes, uint8 [H, W, C] or a RawImage, "label": its label}`. Bytes are an
encoded image, which `data.reading.decoding` decodes. What a label is depends on the task:

- classification: the number of a class, an int;
- multilabel: float32 [L], 1 for each label that is present, 0 for one that is absent, and NaN for
  one that is unknown;
- regression: float32 [L], the numbers to predict, NaN where one is unknown.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class DataError(ValueError):
    """A data set cannot be used; the message says which one, why, and what to do.

    Each argument is a line of the message.
    """

    def __str__(self) -> str:
        """Returns the message."""
        return "\n".join(map(str, self.args))


class RawImage(NamedTuple):
    """A decoded image, stored as a square that is cropped on the device.

    Attributes:
      data: the pixels, uint8 [side, side, 3].
      side: height and width of the square in pixels.
      height, width: of the image before it became a square, in pixels.
    """

    data: bytes
    side: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to one split.

    Attributes:
      examples: `examples[i]` is example i, `{"image": bytes or uint8 [H, W, C], "label": ...}`. It
        may also have `__getitems__(numbers)`, which returns a list of examples at once; `path(i)`,
        the file of example i; and `labels`, the labels of all examples, [N] or [N, L].
      class_names: names of the classes in label order; of the L labels, or of the L numbers.
      name: of the data set and split, for messages.
      accepted: function that returns the correct labels of each example, [[int, ...], ...], which
        may be several or none; it may read the whole split. None: each example has one label.
      notes: sentences about the split that a run prints when it starts: where its images come
        from, and what was left out.
      task: what the labels are: "classification", "multilabel" or "regression".
      groups: the group of each example, such as its patient; None if the groups are unknown.
      columns: other known columns of the examples by name, for scores of subgroups.
      raw_side: the side of the squares if the images are `RawImage`; otherwise 0.
    """

    examples: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]
    name: str = "the data set"
    accepted: Callable[[], Sequence[Sequence[int]]] | None = None
    notes: tuple[str, ...] = ()
    task: str = "classification"
    groups: Sequence[str] | None = None
    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    raw_side: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def blank_labels(self, count: int) -> np.ndarray:
        """Returns zeros for the labels of `count` examples: int32 [N], or float32 [N, L]."""
        if self.task == "classification":
            return np.zeros(count, np.int32)
        return np.zeros((count, self.num_classes), np.float32)

    def groups_of(self, index: np.ndarray) -> list[str] | None:
        """Returns the groups of the examples with these numbers; None if groups are unknown."""
        return None if self.groups is None else [self.groups[i] for i in index.tolist()]

    def describe(self, index: int) -> str:
        """Returns the name of an example for messages: the path of its file, or its number."""
        path = getattr(self.examples, "path", None)
        return path(index) if path else f"example {index} of {self.name}"


class Arrays(Sequence[dict[str, Any]]):
    """Examples held in memory as arrays.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N], or float32 [N, L].
      bad: int32 [N], only if the images are already cropped and resized as batches need them: the
        number of unreadable examples that were skipped to obtain each image. None: the images are
        still to be cropped or resized.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, bad: np.ndarray | None = None):
        self.images, self.labels, self.bad = images, labels, bad

    @property
    def fitted(self) -> bool:
        """Whether the images are already cropped and resized as batches need them."""
        return self.bad is not None

    def __len__(self) -> int:
        return len(self.labels)

    # Any, here and in the other sequences of examples: Sequence also declares slices, which they do
    # not support.
    def __getitem__(self, i: Any) -> Any:
        label = self.labels[i]
        return {"image": self.images[i], "label": label if label.ndim else int(label)}
