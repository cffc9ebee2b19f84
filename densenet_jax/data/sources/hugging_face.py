"""Data sets of the Hugging Face hub; they need the package `datasets`."""

from collections.abc import Sequence
from typing import Any

from densenet_jax.data.sources.source import DataError, Source


class _Rows(Sequence[dict[str, Any]]):
    """The rows of a split as examples, with the images still encoded.

    Attributes:
      rows: a `datasets.Dataset`.
      image: name of the column of images, as {"bytes": bytes or None, "path": str}.
      label: name of the column of labels.
    """

    def __init__(self, rows: Any, image: str, label: str):
        self.rows, self.image, self.label = rows, image, label

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = self.rows[int(i)]
        image = row[self.image]
        data = image["bytes"]
        if data is None:
            with open(image["path"], "rb") as file:
                data = file.read()
        return {"image": data, "label": int(row[self.label])}


def hub_dataset(name: str, split: str, data_dir: str = "") -> Source:
    """Returns a split of a data set of the Hugging Face hub.

    The first column of images and the first column of class labels are used.

    Args:
      name: `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`.
      split: name of the split, or a slice such as `train[:90%]`.
      data_dir: a folder in the repository, or the folder of images for `hf:imagefolder`; "": none.

    Raises:
      DataError: `datasets` is not installed, the data set cannot be loaded, or it has no column of
        images or of class labels.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} needs the package datasets; install it: pip install datasets"
        ) from None
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split, data_dir=data_dir or None)
    except Exception as e:  # hub, network and builders have errors of their own
        raise DataError(f"Hugging Face cannot load {path!r}, split {split!r}: {e}") from e
    features = rows.features
    images = [key for key, value in features.items() if isinstance(value, datasets.Image)]
    labels = [key for key, value in features.items() if isinstance(value, datasets.ClassLabel)]
    if not images or not labels:
        raise DataError(
            f"{name} has the columns {', '.join(features)}; image classification needs a column of "
            "images and one of class labels. Choose another data set."
        )
    rows = rows.cast_column(images[0], datasets.Image(decode=False))
    names = tuple(features[labels[0]].names)
    return Source(_Rows(rows, images[0], labels[0]), names, f"{name} {split}")
