"""What a data set is to the rest: examples by number, and the names of the classes.

An example is `{"image": bytes or uint8 [H, W, C], "label": int}`; decoding is `decoding`'s work.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class DataError(ValueError):
    """The data set cannot be used; the message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to one split.

    Attributes:
      examples: `examples[i]` is example i, `len(examples)` their number.
      class_names: in label order.
      name: of data set and split, for messages.
      accepted: returns for every example the labels that are right, where there may be several, or
        none; it may have to read the whole split. None: each example has its one label.
    """

    examples: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]
    name: str = "the data set"
    accepted: Callable[[], Sequence[Sequence[int]]] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def describe(self, index: int) -> str:
        """Returns what to call an example in a message: its file, or its number."""
        files = getattr(self.examples, "path", None)
        return files(index) if files else f"example {index} of {self.name}"


class Arrays(Sequence):
    """Examples held as arrays.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      bad: int32 [N], of images that are fitted to their use: how many unreadable examples were
        passed over for each. None: the images are still to be cropped or resized.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, bad: np.ndarray | None = None):
        self.images, self.labels, self.bad = images, labels, bad

    @property
    def fitted(self) -> bool:
        return self.bad is not None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(self.labels[i])}
