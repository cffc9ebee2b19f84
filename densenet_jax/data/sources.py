"""A data set's name -> random access to its examples: TFDS, image folders, the digits of scikit-learn.

An example is `{"image": bytes or uint8 [H, W, C], "label": int}`; decoding is `host`'s work.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLIT_ALIASES = {"validation": ("validation", "val", "valid", "test"), "train": ("train",)}


class DataError(ValueError):
    """The data set cannot be used; the message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to one split.

    Attributes:
      examples: `examples[i]` is example i, `len(examples)` their number.
      class_names: in label order.
    """

    examples: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(name: str, split: str, data_dir: str = "") -> Source:
    """Returns one split of a data set.

    Args:
      name: `digits`; `folder` for images in `data_dir/split/class/*`; else a TFDS data set with
        `image` and `label`, `name` or `name:version`.
      split: the split's name; TFDS's slices (`train[:90%]`) work for its data sets.
      data_dir: the folder of the images, or TFDS's data directory ("" for its default).

    Raises:
      DataError: there is no such data set or split, or it is not prepared.
    """
    if name == "digits":
        return digits(split)
    if name == "folder":
        return image_folder(data_dir, split)
    return tfds_source(name, split, data_dir)


# --- digits -----------------------------------------------------------------------------------


class _Arrays(Sequence):
    """Examples held as arrays: images uint8 [N, H, W, C], labels [N]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(self.labels[i])}


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
    return Source(_Arrays(images[..., None], labels), tuple("0123456789"))


# --- folders of images ------------------------------------------------------------------------


class _Files(Sequence):
    """Examples read from files when they are asked for."""

    def __init__(self, files: list[tuple[str, int]]):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        return {"image": pathlib.Path(path).read_bytes(), "label": label}


def image_folder(root: str, split: str) -> Source:
    """Returns the images of `root/split/class/*`; labels number the classes by name.

    The classes are those of the training split, so that every split numbers them alike.
    """
    if not root:
        raise DataError(
            "data.name is 'folder', but data.data_dir is not set; "
            "add --config.data.data_dir=DIR, with images in DIR/train/CLASS/*.jpg."
        )
    base = pathlib.Path(root)
    if not base.is_dir():
        raise DataError(f"{root} is not a folder; data.data_dir must hold train/CLASS/*.jpg.")
    names = SPLIT_ALIASES.get(split, (split,))
    folder = next((base / n for n in names if (base / n).is_dir()), None)
    if folder is None:
        found = sorted(p.name for p in base.iterdir() if p.is_dir())
        raise DataError(f"{root} has no folder {' or '.join(names)}; it has {found}.")
    class_root = base / "train" if (base / "train").is_dir() else folder
    classes = sorted(p.name for p in class_root.iterdir() if p.is_dir())
    if not classes:
        raise DataError(f"{class_root} has no class folders; expected CLASS/*.jpg in it.")
    strangers = {p.name for p in folder.iterdir() if p.is_dir()} - set(classes)
    if strangers:
        raise DataError(f"{folder} has classes that {class_root} lacks: {sorted(strangers)}.")
    files = []
    for label, name in enumerate(classes):
        paths = sorted(
            os.path.join(parent, file)
            for parent, _, children in os.walk(folder / name)
            for file in children
            if file.lower().endswith(IMAGE_SUFFIXES)
        )
        if not paths and folder == class_root:
            raise DataError(f"{folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}).")
        files += [(path, label) for path in paths]
    return Source(_Files(files), tuple(classes))


# --- TFDS -------------------------------------------------------------------------------------


class _Tfds(Sequence):
    """The records of a TFDS data source, images left encoded."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        record = self.records[i]
        return {"image": record["image"], "label": int(record["label"])}


def tfds_source(name: str, split: str, data_dir: str) -> Source:
    """Returns a split of a data set that TFDS has prepared as ArrayRecord; TensorFlow is not needed."""
    import tensorflow_datasets as tfds

    short = name.split(":")[0].split("/")[0]
    where = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=where)
    except tfds.core.registered.DatasetNotFoundError:
        near = _nearest(
            short, [*tfds.list_builders(with_community_datasets=False), "digits", "folder"]
        )
        raise DataError(
            f"There is no data set {name!r} in TFDS{near}; for your own images use "
            "--config.data.name=folder --config.data.data_dir=DIR."
        ) from None
    except (AssertionError, ValueError) as e:  # an unknown version or builder configuration
        raise DataError(f"TFDS cannot open {name!r}: {str(e).splitlines()[0]}") from None
    if not builder.is_prepared():
        raise DataError(_how_to_prepare(short, builder.data_path))
    if builder.info.file_format.value == "tfrecord":
        raise DataError(
            f"{name} in {builder.data_path} was prepared as TFRecord, which has no random access; "
            f"convert it: pip install tensorflow && python -m tensorflow_datasets.scripts.cli.main "
            f"convert_format --root_data_dir={builder.data_path.parent.parent} "
            f"--out_file_format=array_record --out_path=NEW_DIR "
            "and pass --config.data.data_dir=NEW_DIR."
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise DataError(
            f"{name} has the features {sorted(features)}; image classification needs "
            "'image' and 'label'."
        )
    base_split = split.split("[")[0]
    if base_split not in builder.info.splits:
        raise DataError(f"{name} has no split {split!r}; it has {sorted(builder.info.splits)}.")
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(split=split, decoders=decoders)
    return Source(_Tfds(records), tuple(features["label"].names))


def _how_to_prepare(name: str, path) -> str:
    root = path.parent.parent
    prepare = (
        f"  pip install tensorflow tensorflow-datasets\n"
        f"  python -m tensorflow_datasets.scripts.cli.main build {name} "
        f"--file_format=array_record --data_dir={root}\n"
    )
    if name == "imagenet2012":
        prepare = (
            f"  mkdir -p {root}/downloads/manual   # and put there, from image-net.org,\n"
            f"  #   ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6 GB)\n{prepare}"
        )
    return (
        f"{name} is not prepared: there is no {path}. Prepare it once, in any environment:\n"
        f"{prepare}or say where it is: --config.data.data_dir=DIR (a TFDS data directory). "
        "To see a training without any download: make demo."
    )


def _nearest(name: str, names: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
