"""Data sets that need no download: the digits of scikit-learn, and noise for benchmarks."""

from collections.abc import Sequence

import numpy as np

from densenet_jax.data.sources.source import Arrays, DataError, Source


def digits(split: str) -> Source:
    """Returns scikit-learn's scanned digits, uint8 [8, 8, 1]: `train` (1,437) or `test` (360).

    The test split holds every fifth digit of each class, in the order of the file.
    """
    from sklearn.datasets import load_digits  # a second that other data sets need not pay

    if split not in ("train", "test"):
        raise DataError(f"digits has no split {split!r}; it has 'train' and 'test'.")
    data = load_digits()
    order = np.argsort(data.target, kind="stable")
    in_test = np.zeros(len(order), bool)
    in_test[order[::5]] = True
    chosen = in_test if split == "test" else ~in_test
    images = (data.images[chosen] * (255 / 16)).round().astype(np.uint8)
    labels = data.target[chosen].astype(np.int32)
    return Source(Arrays(images[..., None], labels), tuple("0123456789"), f"digits {split}")


class _Noise(Sequence):
    """As many examples as ImageNet's training split has, over a few images."""

    def __init__(self, size: int, classes: int):
        self.classes = classes
        self.images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)

    def __len__(self):
        return 1_281_167

    def __getitem__(self, i):
        return {"image": self.images[i % len(self.images)], "label": int(i % self.classes)}


def synthetic(name: str, split: str) -> Source:
    """Returns noise, uint8 [size, size, 3]: `synthetic[:SIZE[:CLASSES]]`.

    Nothing is read or decoded, so that a benchmark measures the rest. Size 224 and 1,000 classes
    where the name does not say.
    """
    size, classes = 224, 1000
    try:
        _, *numbers = name.split(":")
        size, classes = [int(n) for n in numbers] + [size, classes][len(numbers) :]
        if size < 1 or classes < 1:
            raise ValueError
    except ValueError:
        raise DataError(
            f"There is no data set {name!r}; synthetic takes a size and a number of classes, as in "
            "synthetic:32:10."
        ) from None
    names = tuple(f"class {i}" for i in range(classes))
    return Source(_Noise(size, classes), names, f"{name} {split}")
