"""Data sets of the Hugging Face hub, through the package `datasets` where it is installed."""

from collections.abc import Sequence

from densenet_jax.data.sources.source import DataError, Source


class _Rows(Sequence):
    """The rows of a split, images left encoded."""

    def __init__(self, rows, image: str, label: str):
        self.rows, self.image, self.label = rows, image, label

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[int(i)]
        image = row[self.image]
        data = image["bytes"]
        if data is None:
            with open(image["path"], "rb") as file:
                data = file.read()
        return {"image": data, "label": int(row[self.label])}


def hub_dataset(name: str, split: str, data_dir: str = "") -> Source:
    """Returns a split of `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`.

    The first column of images and the first of class labels are used.

    Args:
      data_dir: a folder inside the repository, or of the images for `hf:imagefolder`.

    Raises:
      DataError: `datasets` is not installed, or the hub has no such data set or columns.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name} needs the package datasets: pip install datasets.") from None
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split, data_dir=data_dir or None)
    except Exception as e:  # the hub, the network and every builder raise their own
        raise DataError(f"Hugging Face cannot load {path!r}, split {split!r}: {e}") from e
    features = rows.features
    images = [key for key, value in features.items() if isinstance(value, datasets.Image)]
    labels = [key for key, value in features.items() if isinstance(value, datasets.ClassLabel)]
    if not images or not labels:
        raise DataError(
            f"{name} has the columns {', '.join(features)}; image classification needs one of "
            "images and one of class labels."
        )
    rows = rows.cast_column(images[0], datasets.Image(decode=False))
    names = tuple(features[labels[0]].names)
    return Source(_Rows(rows, images[0], labels[0]), names, f"{name} {split}")
