"""Finding data sets by name, and the messages for those that cannot be used."""

import sys
import types

import numpy as np
import pytest
from tensorflow_datasets import features as tfds_features

from densenet_jax.data.sources import by_name, folders, splits, tfds
from densenet_jax.data.sources.source import DataError

from .conftest import as_tfrecord, encode, picture, write_tfds


def fails(match, *args, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        by_name.load(*args, **kwargs)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_digits():
    train, test = by_name.load("digits", "train"), by_name.load("digits", "test")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert train.examples[0]["image"].shape == (8, 8, 1)
    fails("no split 'val'", "digits", "val")


def test_synthetic():
    source = by_name.load("synthetic:32:10", "train")
    assert (len(source), source.num_classes) == (1_281_167, 10)
    example = source.examples[1_000_003]
    assert example["image"].shape == (32, 32, 3)
    assert example["label"] == 3
    assert by_name.load("synthetic", "train").examples[0]["image"].shape == (224, 224, 3)
    fails("synthetic:32:10", "synthetic:big", "train")


# --- folders ----------------------------------------------------------------------------------


def test_folder_with_splits(image_dir):
    train = by_name.load("folder", "train", str(image_dir))
    validation = by_name.load("folder", "validation", str(image_dir))
    assert (len(train), len(validation)) == (12, 4)
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert train.examples[11]["label"] == 1
    assert train.describe(0).endswith("train/cat/0.jpg")


def test_one_folder_is_divided_by_a_hash(tmp_path):
    names = [f"{name}/{i:03}.png" for name in ("x", "y") for i in range(60)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def split(which, **kwargs):
        return set(folders.image_folder(tmp_path, which, **kwargs).examples.paths)

    train, validation = split("train", holdout=0.25), split("validation", holdout=0.25)
    assert not train & validation
    assert len(train | validation) == 120
    assert 15 <= len(validation) <= 45
    (tmp_path / "x" / "new.png").touch()
    moved = split("validation", holdout=0.25) ^ validation
    assert moved <= {"x/new.png"}
    # A fixed value, because another hash would move training images to existing validation splits.
    assert splits.fractions_of(["cat/1.jpg"])[0] == pytest.approx(0.195336, abs=1e-6)


def test_folder_mistakes(image_dir, tmp_path):
    fails("data.data_dir is not set", "folder", "train")
    fails("not a folder", "folder", "train", str(tmp_path / "nowhere"))
    fails("has no folder test or testing; it has train, val", "folder", "test", str(image_dir))
    (image_dir / "val" / "bird").mkdir()
    fails("has classes that .* lacks: bird", "folder", "validation", str(image_dir))
    (image_dir / "train" / "bird").mkdir()
    fails("class folder .*bird has no images", "folder", "train", str(image_dir))
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("no class folders", "folder", "train", str(empty))


def make_images(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("TRAINING", "Test"), ("train", "valid")]
)
def test_split_folders_in_any_capitals(tmp_path, train, val):
    make_images(*(tmp_path / s / c / "1.jpg" for s in (train, val) for c in ("cat", "dog")))
    for split in ("train", "validation"):
        source = folders.image_folder(str(tmp_path), split)
        assert source.class_names == ("cat", "dog")
        assert len(source) == 2
    chosen_by_test = any("chooses the best checkpoint" in note for note in source.notes)
    assert chosen_by_test == (val == "Test")


def test_folders_that_are_not_classes_are_refused(tmp_path):
    high = tmp_path / "high"
    make_images(*(high / "dataset" / "train" / c / "1.jpg" for c in ("cat", "dog")))
    fails(r"one level too high. Set --config.data.data_dir=.*dataset", "folder", "train", str(high))
    folds = tmp_path / "folds"
    make_images(*(folds / f / c / "1.jpg" for f in ("fold1", "fold2") for c in ("cat", "dog")))
    fails("look like splits, not like classes", "folder", "train", str(folds))
    single = tmp_path / "single"
    make_images(single / "cat" / "1.jpg")
    fails("only one class, cat", "folder", "train", str(single))
    twice = tmp_path / "twice"
    make_images(*(twice / s / c / "1.jpg" for s in ("train", "Train") for c in ("cat", "dog")))
    fails("Train and train; leave one", "folder", "train", str(twice))


def test_every_class_keeps_a_training_image(tmp_path):
    names = [f"rare{i}" for i in range(40)]
    make_images(*(tmp_path / name / "1.png" for name in names))
    source = folders.image_folder(str(tmp_path), "train", holdout=0.5)
    assert sorted(source.examples.labels) == list(range(40))


def test_links_are_followed_once_and_left_out_files_are_counted(tmp_path):
    data, store = tmp_path / "data", tmp_path / "store"
    make_images(data / "cat" / "1.jpg", data / "dog" / "1.jpg", data / "dog" / "2.PSD")
    make_images(data / "dog" / "notes.txt", *(store / f"{i}.png" for i in range(5)))
    (data / "cat" / "more").symlink_to(store)
    (store / "loop").symlink_to(data / "cat")
    paths, labels, notes = folders._label(data, "", ["cat", "dog"], may_lack_classes=False)
    assert labels.tolist() == [0] * 6 + [1]
    assert paths[0] == "cat/1.jpg"
    assert "2 files are left out (1 .psd, 1 .txt)" in notes[0]


def test_folder_without_permission(image_dir, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    fails("cannot be read: Permission denied", "folder", "train", str(image_dir))


# --- TFDS -------------------------------------------------------------------------------------


def test_tfds(tiny):
    source = by_name.load("tiny", "train", str(tiny))
    assert len(source) == 40
    assert source.class_names == ("a", "b", "c", "d")
    example = source.examples[5]
    assert example["label"] == 1
    assert example["image"] == encode(picture(24, 40, 5))
    assert len(by_name.load("tiny", "train[:25%]", str(tiny))) == 10
    assert len(by_name.load("tiny:1.0.0", "validation", str(tiny))) == 10
    assert source.examples.__getitems__([3, 1])[1]["label"] == 1


def test_the_message_without_imagenet(tmp_path):
    """`python main.py --config=configs/densenet121.py` on a machine without ImageNet."""
    message = fails("imagenet2012 is not in", "imagenet2012", "train", str(tmp_path))
    assert (
        message
        == f"""\
imagenet2012 is not in {tmp_path}. Download ILSVRC2012_img_train.tar (138 GB) and \
ILSVRC2012_img_val.tar (6.3 GB) from
https://image-net.org/download-images, and prepare them once:
  python -m densenet_jax.data.prepare imagenet2012 --train=ILSVRC2012_img_train.tar \
--val=ILSVRC2012_img_val.tar --data-dir={tmp_path}
If you have it elsewhere: --config.data.data_dir=DIR, where DIR holds imagenet2012/5.1.0.
To see a training without any download: make demo, or --config=configs/digits.py."""
    )


def test_tfds_mistakes(tiny, tmp_path):
    message = fails("oxford_flowers102 is not in", "oxford_flowers102", "train", str(tmp_path))
    command = f"densenet_jax.data.prepare tfds oxford_flowers102 --data-dir={tmp_path}"
    assert command in message
    fails(r"no data set 'cifar11' .*did you mean cifar10", "cifar11", "train", str(tmp_path))
    fails("not a folder; it must be a TFDS data dir", "tiny", "train", str(tmp_path / "nowhere"))
    fails("no split 'test'; it has train, validation", "tiny", "test", str(tiny))
    fails("TFDS cannot open 'cifar10:9.9.9'", "cifar10:9.9.9", "train", str(tmp_path))


def test_tfds_without_labels(tmp_path):
    write_tfds(tmp_path, "plain", {"train": [(b"", 0)]}, ["a"], features=("image", "file_name"))
    fails("needs 'image' and 'label'", "plain", "train", str(tmp_path))


@pytest.mark.parametrize(
    ("feature", "task"),
    [
        (tfds_features.Sequence(tfds_features.ClassLabel(names=["a", "b"])), "multilabel"),
        (tfds_features.Scalar(np.float32), "regression"),
        (tfds_features.Tensor(shape=(2,), dtype=np.float32), "regression"),
    ],
    ids=["sequence", "number", "numbers"],
)
def test_tfds_with_labels_of_another_task(tmp_path, feature, task):
    kinds = {"image": tfds_features.Image(shape=(None, None, 3)), "label": feature}
    write_tfds(tmp_path, "other", {"train": [(b"", 0)]}, ["a"], features=kinds)
    fails(f"not one class for each image: its task is {task}", "other", "train", str(tmp_path))


def test_tfds_as_tfrecord_names_the_converter(tiny, tmp_path):
    as_tfrecord(tiny / "tiny" / "1.0.0", tmp_path / "tiny" / "1.0.0")
    message = fails("prepared as tfrecord", "tiny", "train", str(tmp_path))
    assert f"python -m densenet_jax.data.prepare convert {tmp_path}/tiny/1.0.0" in message


def test_a_missing_shard_is_named(tiny, tmp_path):
    folder = write_tfds(tmp_path, "gone", {"train": [(encode(picture()), 0)]}, ["a"])
    next(folder.glob("*.array_record*")).unlink()
    fails("gone in .* cannot be opened: .*No such file.*gone-train", "gone", "train", str(tmp_path))


def test_the_commands_name_the_root_of_a_configuration(tmp_path):
    message = tfds.how_to_prepare("a/b", tmp_path / "a" / "b" / "1.0.0")
    assert f"prepare tfds a/b --data-dir={tmp_path}\n" in message


# --- Hugging Face -----------------------------------------------------------------------------


class FakeRows:
    def __init__(self, features, rows):
        self.features, self.rows = features, rows

    def cast_column(self, *_):
        return self

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    module = types.ModuleType("datasets")
    module.Image = type("Image", (), {"__init__": lambda self, decode=True: None})
    module.ClassLabel = type("ClassLabel", (), {"names": ["a", "b"]})
    file = tmp_path / "1.jpg"
    file.write_bytes(b"from a file")
    rows = [
        {"img": {"bytes": b"in the row", "path": None}, "y": 1},
        {"img": {"bytes": None, "path": str(file)}, "y": 0},
    ]
    features = {"img": module.Image(), "y": module.ClassLabel()}

    def load_dataset(path, config, split, data_dir):
        if path != "me/things":
            raise FileNotFoundError("no such repository")
        return FakeRows(features if config != "bare" else {"img": features["img"]}, rows)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hugging_face(hub):
    source = by_name.load("hf:me/things", "train")
    assert len(source) == 2
    assert source.class_names == ("a", "b")
    assert source.examples[0] == {"image": b"in the row", "label": 1}
    assert source.examples[np.int64(1)] == {"image": b"from a file", "label": 0}


def test_hugging_face_mistakes(hub, monkeypatch):
    fails("cannot load 'me/nothing'.*no such repository", "hf:me/nothing", "train")
    fails("has the columns img; image", "hf:me/things:bare", "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    fails("pip install datasets", "hf:me/things", "train")
