"""Small data sets for the tests."""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.splits import SplitInfo

from densenet_jax.data.preparing import shards

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
JPEGS = sorted((GOLDEN / "eval_preprocess").glob("*.JPEG"))


def picture(height=24, width=32, seed=0, channels=3):
    """Returns a smooth picture that JPEG hardly changes, uint8 [H, W, C] ([H, W] if C is 1)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, channels), np.uint8).squeeze()
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(array, kind="JPEG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def record(image, label, name):
    """Returns a serialised example with the features image, label and file_name."""
    return shards.record({"image": image, "label": label, "file_name": name.encode()})


def write_tfds(
    data_dir, name, splits, classes, features=("image", "label", "file_name"), version="1.0.0"
):
    """Writes a data set in TFDS's format and returns its folder.

    `splits` is {name: [(image bytes, label), ...]} or {name: [serialised record, ...]}; `features`
    is a tuple of names, or {name: TFDS feature}.
    """
    folder, base = data_dir / name / version, name.split("/")[0]
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        path = folder / f"{base}-{split}.array_record-00000-of-00001"
        shards.write_shard(
            path,
            (
                e if isinstance(e, bytes) else record(*e, f"{split}{i}")
                for i, e in enumerate(examples)
            ),
        )
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=base, split=split, filetype_suffix="array_record"
        )
        infos.append(
            SplitInfo(
                name=split,
                shard_lengths=[len(examples)],
                num_bytes=path.stat().st_size,
                filename_template=template,
            )
        )
    kinds = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes),
        "file_name": tfds.features.Text(),
    }
    kinds = {key: kinds[key] for key in features} if isinstance(features, tuple) else features
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(kinds),
        split_infos=infos,
        version=version,
        check_data=False,
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A TFDS data directory with `tiny`: 40 training and 10 validation JPEGs, 4 classes."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {
        split: [(encode(picture(24 + i % 5, 40, i)), i % 4) for i in range(count)]
        for split, count in (("train", 40), ("validation", 10))
    }
    write_tfds(root, "tiny", splits, ["a", "b", "c", "d"])
    return root


@pytest.fixture
def image_dir(tmp_path):
    """A folder of images with the splits train and val and the classes cat and dog."""
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(encode(picture(seed=10 * label + i)))
    return tmp_path / "images"


def as_tfrecord(folder, new):
    """Writes a copy, as TFRecord, of a data set of `write_tfds`, and returns its folder `new`."""
    import struct

    from array_record.python.array_record_module import ArrayRecordReader

    from densenet_jax.data.preparing import tfrecord

    new.mkdir(parents=True)
    for path in folder.iterdir():
        if ".array_record" not in path.name:
            (new / path.name).write_bytes(path.read_bytes())
            continue
        data = b""
        for record in ArrayRecordReader(str(path)).read_all():
            length = struct.pack("<Q", len(record))
            data += length + struct.pack("<I", tfrecord.masked_crc(length)) + record
            data += struct.pack("<I", tfrecord.masked_crc(record))
        (new / path.name.replace("array_record", "tfrecord")).write_bytes(data)
    info = json.loads((new / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (new / "dataset_info.json").write_text(json.dumps(info))
    return new
