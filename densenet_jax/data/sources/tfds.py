"""Data sets of TensorFlow Datasets (TFDS) prepared as ArrayRecord, read without TensorFlow."""

import contextlib
import difflib
import functools
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from densenet_jax.data.sources.label_features import Feature, Part, parts, unsuitable
from densenet_jax.data.sources.source import DataError, RawImage, Source
from densenet_jax.data.sources.tables import DEFAULT, Columns

MAX_RAW_SIDE = 1024  # pixels; of squares that are stored decoded


class _Records(Sequence[dict[str, Any]]):
    """The records of a split as examples, with the images as they are stored.

    TFDS's own `__getitem__` decodes every feature; reading only two fields of the protocol buffer
    takes a tenth of its time.

    Attributes:
      records: TFDS's sequence of serialised `tf.train.Example`.
      name: of the data set and split.
      label: name of the feature that is the class.
      parts: what converts features to the labels of another task than classification.
      raw_side: side of the squares of decoded images; 0: the images are encoded.
    """

    def __init__(
        self,
        records: Any,
        name: str,
        label: str = "label",
        parts: Sequence[Part] = (),
        raw_side: int = 0,
    ):
        self.records, self.name, self.label, self.parts = records, name, label, parts
        self.raw_side = raw_side

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: Any) -> Any:
        return self._parse(self.records[i])

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [self._parse(record) for record in self.records.__getitems__(numbers)]

    def _parse(self, record: bytes) -> dict[str, Any]:
        features = _features(record)
        image = features["image"].bytes_list.value[0]
        if self.raw_side:
            size = (features[side].int64_list.value[0] for side in ("height", "width"))
            image = RawImage(image, self.raw_side, *size)
        if not self.parts:
            return {"image": image, "label": features[self.label].int64_list.value[0]}
        labels = [part(_values(features[part.feature.key])) for part in self.parts]
        return {"image": image, "label": np.concatenate(labels)}

    def several(self, feature: str) -> list[tuple[int, ...]]:
        """Returns the values of an integer feature with several values, for every example."""
        return [tuple(_features(record)[feature].int64_list.value) for record in self.records]


def _features(record: bytes) -> Mapping[str, Any]:
    """Returns {name: tf.train.Feature} of a serialised `tf.train.Example`."""
    return _example_type().FromString(record).features.feature


def _values(feature: Any) -> Sequence[float]:
    """Returns the numbers of a `tf.train.Feature`."""
    numbers: Sequence[float] = feature.int64_list.value or feature.float_list.value
    return numbers


@functools.cache  # looking it up for every record takes longer than parsing the record
def _example_type() -> Any:
    """Returns the class `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def tfds_source(
    name: str,
    split: str,
    data_dir: str = "",
    task: str = "classification",
    columns: Columns = DEFAULT,
) -> Source:
    """Returns a split of a data set of TFDS.

    Args:
      name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      split: name of the split, or a slice such as `train[:90%]`.
      data_dir: TFDS's data directory, on a disk or a mounted bucket; "": TFDS's default.
      task: "classification", "multilabel" or "regression".
      columns: `label_columns` are the names of the label features, with slashes for features of
        features (`attributes/Smiling`, or `attributes` for all of them); `uncertain` is what
        uncertain labels mean.

    Raises:
      DataError: TFDS does not know the data set, it is not prepared as ArrayRecord, it has no
        image or label, its labels suit another task, it has no such split, or it cannot be read.
    """
    import tensorflow_datasets as tfds

    where = pathlib.Path(data_dir).expanduser() if data_dir else None
    if where and not where.is_dir():
        raise DataError(
            f"data.data_dir={data_dir} is not a folder; it must be a TFDS data directory, which "
            f"contains {name.split(':')[0].split('/')[0]}/VERSION/."
        )
    with _quiet():
        builder = _builder(tfds, name, where)
        prepared = builder.is_prepared()
    if not prepared:
        raise DataError(*how_to_prepare(name, pathlib.Path(builder.data_path)).splitlines())
    root = _root(builder)
    if builder.info.file_format.value != "array_record":
        raise DataError(
            f"{name} in {builder.data_path} was prepared as {builder.info.file_format.value}, "
            "which has no random access. Convert it once:",
            f"  python -m densenet_jax.data.prepare convert {builder.data_path} --data-dir=NEW_DIR",
            "and pass --config.data.data_dir=NEW_DIR.",
        )
    features = builder.info.features
    # The data set imagenet2012_real has the ReaL labels in addition to the original ones.
    real = "real_label" in features and columns.label_columns == DEFAULT.label_columns
    found = _label_features(features, ("original_label",) if real else columns.label_columns)
    if "image" not in features or not found:
        raise DataError(
            f"{name} has the features {', '.join(sorted(features))}; image classification needs "
            "'image' and 'label'. Name other labels with --config.data.label_columns, or choose "
            "another data set."
        )
    first = found[0]
    if task == "classification" and (len(found) > 1 or first.task != task):
        several = first._replace(several=True, key=", ".join(f.key for f in found))
        raise unsuitable(several if len(found) > 1 else first, task, name)
    if split.split("[")[0] not in builder.info.splits:
        raise DataError(
            f"{name} in {root} has no split {split!r}; it has "
            f"{', '.join(sorted(builder.info.splits)) or 'none'}."
        )
    try:
        # If one file is not readable, the others seldom are; this finds out before reading
        # examples does, whose retries would take minutes.
        for path in builder.info.splits[split].filepaths[:1]:
            open(path, "rb").close()
        source = builder.as_data_source(split=split)
    except (OSError, RuntimeError, ValueError) as e:  # ArrayRecord raises RuntimeError
        raise DataError(f"{name} in {builder.data_path} cannot be opened: {e}") from e
    title, records = f"{name} {split}", source.data_source
    raw_side = _raw_side(features, name)
    notes: tuple[str, ...] = ()
    if hasattr(features["image"], "feature"):  # a sequence of images
        notes = (f"{title}: an example has several images; its first one is used",)
    if task == "classification":
        examples = _Records(records, title, first.key, raw_side=raw_side)
        accepted = functools.partial(examples.several, "real_label") if real else None
        return Source(examples, first.names or (), title, accepted, notes, raw_side=raw_side)
    made = parts(
        found, task, columns.uncertain, name, lambda key: _values(_features(records[0])[key])
    )
    names = tuple(label for part in made for label in part.names)
    examples = _Records(records, title, parts=made, raw_side=raw_side)
    return Source(examples, names, title, notes=notes, task=task, raw_side=raw_side)


def _raw_side(features: Any, name: str) -> int:
    """Returns the side of the squares of a data set prepared with --raw; 0: of another data set.

    Raises:
      DataError: the squares are larger than `prepare` makes them.
    """
    image = features["image"]
    if hasattr(image, "encoding_format") or not {"height", "width"} <= set(features):
        return 0
    side = (image.shape or (None,))[0]
    if image.shape != (side, side, 3) or np.dtype(image.np_dtype) != np.uint8 or not side:
        return 0
    if side > MAX_RAW_SIDE:
        raise DataError(
            f"{name} has raw images of {side:,} x {side:,} pixels, more than {MAX_RAW_SIDE:,}; "
            "prepare it again with a smaller --raw."
        )
    return int(side)


def _label_features(features: Any, keys: Sequence[str]) -> list[Feature]:
    """Returns the features that hold labels, without those that do not exist.

    Args:
      features: TFDS's features of a data set.
      keys: names, with slashes for features of features.
    """
    found = []
    for key in keys:
        feature = features
        for step in key.split("/"):
            feature = feature[step] if hasattr(feature, "keys") and step in feature else None
        if feature is None:
            continue
        if hasattr(feature, "keys"):  # a dictionary of labels, such as celeb_a's attributes
            found += _label_features(features, [f"{key}/{step}" for step in sorted(feature)])
            continue
        several = hasattr(feature, "feature")
        inner = feature.feature if several else feature
        names = tuple(inner.names) if hasattr(inner, "names") else None
        length = getattr(feature, "_length", None)
        if several:
            count = length if length and length > 0 else None
        else:
            count = math.prod(n or 0 for n in feature.shape) or None
        kind = np.dtype(inner.np_dtype).kind
        if names is None and kind not in "biuf":
            continue
        names = ("false", "true") if kind == "b" else names
        found.append(Feature(key, names, count, several))
    return found


def _builder(tfds: Any, name: str, where: pathlib.Path | None) -> Any:
    """Returns TFDS's builder of a data set; raises DataError if there is none.

    Args:
      tfds: the module tensorflow_datasets.
      name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      where: the data directory; None: TFDS's default.
    """
    try:
        return tfds.builder(name, data_dir=where)
    except tfds.core.registered.DatasetNotFoundError:
        names = [
            *tfds.list_builders(with_community_datasets=False),
            "digits",
            "folder",
            "synthetic",
            "table",
        ]
        near = difflib.get_close_matches(name.split(":")[0], names, n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        place = f" nor in {where}" if where else ""
        raise DataError(
            f"There is no data set {name!r} in TFDS{place}{hint}; for your own images use "
            "--config.data.name=folder --config.data.data_dir=DIR."
        ) from None
    except (AssertionError, ValueError) as e:  # an unknown version or builder configuration
        reason = " ".join(str(e).split())
        raise DataError(f"TFDS cannot open {name!r}: {reason[:300]}") from None
    except OSError as e:
        raise DataError(f"TFDS cannot read {name!r} in {where or 'its directory'}: {e}") from e


def _root(builder: Any) -> pathlib.Path:
    """Returns the data directory that contains a builder's NAME/[CONFIG/]VERSION."""
    depth = 3 if builder.builder_config else 2
    return pathlib.Path(builder.data_path).parents[depth - 1]


def how_to_prepare(name: str, path: pathlib.Path) -> str:
    """Returns the message for a data set that is not prepared, with the commands that prepare it.

    Args:
      name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      path: folder of the prepared data set, DIR/NAME/VERSION or DIR/NAME/CONFIG/VERSION.
    """
    from densenet_jax.data.preparing import published

    short = name.split(":")[0].split("/")[0]
    root = next((p.parent for p in path.parents if p.name == short), path.parent.parent)
    if short == "imagenet2012":
        steps = (
            "Download ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6.3 GB) from\n"
            "https://image-net.org/download-images, and prepare them once:\n"
            "  python -m densenet_jax.data.prepare imagenet2012 --train=ILSVRC2012_img_train.tar "
            f"--val=ILSVRC2012_img_val.tar --data-dir={root}\n"
        )
    elif short in published.TABLE:
        steps = (
            "Prepare it once:\n"
            f"  python -m densenet_jax.data.prepare {short} --download --data-dir={root}\n"
        )
    else:
        steps = (
            "Prepare it once (in another environment, if you like):\n"
            "  pip install -r requirements-prepare.txt\n"
            f"  python -m densenet_jax.data.prepare tfds {name} --data-dir={root}\n"
        )
    return (
        f"{name} is not in {root}. {steps}"
        "If you have it elsewhere: --config.data.data_dir=DIR, where DIR holds "
        f"{short}/{path.name}.\n"
        "To see a training without any download: make demo, or --config=configs/digits.py."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses TFDS's warnings about the folders in which it looks for a data set."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
