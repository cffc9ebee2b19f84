"""Data sets that need no download: the digits of scikit-learn, and noise for benchmarks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_jax.data.sources.source import Arrays, DataError, Source


def digits(split: str) -> Source:
    """Returns a split of scikit-learn's scanned digits, images uint8 [8, 8, 1] of 10 classes.

    Args:
      split: "train" (1,437 images) or "test" (360). The test split holds every fifth digit of each
        class, in the order of scikit-learn's file.

    Raises:
      DataError: there is no such split.
    """
    from sklearn.datasets import load_digits  # here, because the import takes a second

    if split not in ("train", "test"):
        raise DataError(f"The data set digits has no split {split!r}; use 'train' or 'test'.")
    data = load_digits()
    order = np.argsort(data.target, kind="stable")
    in_test = np.zeros(len(order), bool)
    in_test[order[::5]] = True
    chosen = in_test if split == "test" else ~in_test
    images = (data.images[chosen] * (255 / 16)).round().astype(np.uint8)
    labels = data.target[chosen].astype(np.int32)
    return Source(Arrays(images[..., None], labels), tuple("0123456789"), f"digits {split}")


class _Noise(Sequence[dict[str, Any]]):
    """As many examples as ImageNet's training split has, which repeat 64 images of noise."""

    def __init__(self, size: int, classes: int):
        self.classes = classes
        self.images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, i: Any) -> Any:
        return {"image": self.images[i % len(self.images)], "label": int(i % self.classes)}


def synthetic(name: str, split: str) -> Source:
    """Returns images of noise, uint8 [size, size, 3], for benchmarks without reading or decoding.

    Args:
      name: `synthetic[:SIZE[:CLASSES]]`; without them 224 pixels and 1,000 classes.
      split: any name; all splits are the same.

    Raises:
      DataError: size or number of classes is not a positive integer.
    """
    size, classes = 224, 1000
    try:
        _, *numbers = name.split(":")
        size, classes = [int(n) for n in numbers] + [size, classes][len(numbers) :]
        if size < 1 or classes < 1:
            raise ValueError
    except ValueError:
        raise DataError(
            f"There is no data set {name!r}; write synthetic:SIZE:CLASSES with a size in pixels "
            "and a number of classes, for example synthetic:32:10."
        ) from None
    names = tuple(f"class {i}" for i in range(classes))
    return Source(_Noise(size, classes), names, f"{name} {split}")
