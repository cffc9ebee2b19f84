"""Splits of folders and tables: by name, by holdout, by fold; groups stay together."""

import hashlib

import numpy as np
import pytest

from densenet_jax.data.sources import folders, splits, tables
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.splits import Division
from densenet_jax.data.sources.tables import Columns


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pairs(source):
    return list(zip(source.examples.paths, source.examples.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("holdout", "count", "digest"),
    [
        (0.1, 15, "a5918efc9fbebddc"),
        (0.25, 41, "1e29b6e77e578947"),
        (0.6, 92, "ed2e08b0260fb37f"),
    ],
)
def test_the_holdout_of_a_folder_is_that_of_the_first_version(tmp_path, holdout, count, digest):
    for name, images in (("x", 60), ("y y", 60), ("rare", 1), ("z/deep", 9)):
        touch(*(tmp_path / name / f"{i:03}.png" for i in range(images)))
    found = pairs(folders.image_folder(str(tmp_path), "validation", holdout))
    assert len(found) == count
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == digest


def patients(folder, count=30):
    for p in range(count):
        for k in range(4):
            touch(folder / ("neg", "pos")[p % 2] / f"patient{p:05}" / f"study{k}" / "view1.png")


def test_a_folder_and_a_table_of_the_same_images_have_the_same_splits(tmp_path):
    patients(tmp_path)
    folder = folders.image_folder(str(tmp_path), "validation", 0.3, group=r"patient\d+")
    rows = [
        {"path": path, "label": path[:3], "patient": path.split("/")[1]}
        for split in ("train", "validation")
        for path, _ in pairs(folders.image_folder(str(tmp_path), split))
    ]
    table = tables.from_records(
        rows, tmp_path, "validation", Columns(group_column="patient"), Division(0.3)
    )
    assert sorted(pairs(table)) == pairs(folder)
    assert set(table.groups) == set(folder.groups)
    plain = tables.from_records(rows, tmp_path, "validation", division=Division(0.3))
    assert sorted(pairs(plain)) == pairs(folders.image_folder(str(tmp_path), "validation", 0.3))


@pytest.mark.parametrize("group", [r"patient\d+", r"/(patient\d+)/"])
def test_no_patient_is_in_two_splits(tmp_path, group):
    patients(tmp_path)
    train, validation = (
        folders.image_folder(str(tmp_path), split, 0.3, group=group)
        for split in ("train", "validation")
    )
    assert len(train) + len(validation) == 120
    assert not set(train.groups) & set(validation.groups)
    assert train.groups[0].startswith("patient")
    # More images, and more patients, move nobody.
    patients(tmp_path, 40)
    touch(tmp_path / "neg" / "patient00000" / "more" / "x.png")
    again = folders.image_folder(str(tmp_path), "validation", 0.3, group=group)
    assert set(pairs(validation)) <= set(pairs(again))
    assert not set(again.groups) & set(train.groups)


def test_folds_are_a_partition(tmp_path):
    patients(tmp_path)
    seen = []
    for fold in range(4):
        options = {"group": r"patient\d+", "folds": 4, "fold": fold}
        train = folders.image_folder(str(tmp_path), "train", **options)
        validation = folders.image_folder(str(tmp_path), "validation", **options)
        assert not set(train.groups) & set(validation.groups)
        assert len(train) + len(validation) == 120
        assert "data.folds=4, data.fold=" in train.notes[0]
        seen += validation.examples.paths
    assert len(seen) == len(set(seen)) == 120


def test_a_class_of_one_group_stays_in_training():
    keys = Column.of([f"g{i}" for i in (0, 0, 0, 1, 2, 3, 4, 5, 6, 7)])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], np.int32)
    for fold in range(3):
        rows, _ = splits.rows_of_part(
            "train", keys, labels, ["a", "b"], Division(0.1, 3, fold), "x"
        )
        assert {0, 1, 2} <= set(rows.tolist())
    several = np.zeros((10, 2), np.float32)
    several[:3, 1] = 1
    several[:, 0] = np.nan
    rows, _ = splits.rows_of_part("train", keys, several, ["a", "b"], Division(0.999), "x")
    assert {0, 1, 2} <= set(rows.tolist())


def test_classes_without_validation_examples_are_named():
    keys = Column.of(map(str, range(100)))
    labels = np.zeros(100, np.int32)
    labels[:2] = 1
    lacking = splits.fractions_of(keys.values)[:2].min() * 0.99
    assert splits.fractions_of(keys.values)[2:].min() < lacking
    _, notes = splits.rows_of_part("validation", keys, labels, ["a", "b"], Division(lacking), "x")
    assert notes[1].endswith("no example of 1 of 2 classes: b")


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["Train", "VAL"], "train", "Train"),
        (["Train", "VAL"], "validation", "VAL"),
        (["Train", "VAL"], "val", "VAL"),
        (["training", "Testing"], "validation", "Testing"),
        (["training", "Testing"], "test", "Testing"),
        (["training"], "test", None),
        (["Fold1", "fold2"], "fold1", "Fold1"),
    ],
)
def test_names_of_splits(names, split, found):
    assert splits.find(split, names, "x")[0] == found


def test_two_names_of_one_split_are_refused():
    with pytest.raises(DataError, match="x has val and valid; leave one"):
        splits.find("validation", ["train", "val", "valid"], "x")


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((0.1, 5, 5), "fold is 5; with data.folds=5 it must be from 0 to 4"),
        ((0.1, 5, -1), "fold is -1"),
        ((0.1, 1, 0), "folds is 1; set it to 2 or more"),
        ((0.1, 0, 2), "fold is 2, but data.folds is 0"),
        ((1.5, 0, 0), "holdout is 1.5"),
    ],
)
def test_divisions_that_are_refused(numbers, match):
    with pytest.raises(DataError, match=match):
        Division(*numbers)


def test_groups_of_folders_that_are_refused(tmp_path):
    patients(tmp_path, 4)
    for options, match in (
        ({"group": "("}, "not a regular expression"),
        ({"group": r"person\d"}, "finds no group in neg/patient00000/study0/view1.png"),
        ({"group": r"view"}, "empty with data.holdout=0.1 and 1 groups"),
    ):
        with pytest.raises(DataError, match=match):
            folders.image_folder(str(tmp_path), "validation", **options)
    other = tmp_path / "split"
    touch(*(other / s / c / f"p{i}_{s}.jpg" for s in ("train", "val") for c in "ab" for i in "12"))
    with pytest.raises(DataError, match=r"'p1_' is in two splits, train and val .2 groups"):
        folders.image_folder(str(other), "train", group=r"p\d_")
    with pytest.raises(DataError, match="folds=3 divides a folder without splits"):
        folders.image_folder(str(other), "train", folds=3)
    assert folders.image_folder(str(other), "train", group=r"p\d_\w+").groups[0] == "p1_train"


def test_the_start_says_which_split_is_the_validation(tmp_path):
    touch(*(tmp_path / s / c / "1.jpg" for s in ("train", "val", "test") for c in "ab"))
    (note,) = folders.image_folder(str(tmp_path), "validation").notes
    assert note.endswith(
        "val chooses the best checkpoint; test is for --config.data.eval_split=test"
    )
    assert len(folders.image_folder(str(tmp_path), "test")) == 2


def test_folders_below_a_class_are_named_unless_they_are_groups(tmp_path):
    for name in ("neg", "pos"):
        for patient in range(20):
            path = tmp_path / name / f"patient{name}{patient}" / "view.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
    found = folders.image_folder(str(tmp_path), "train", 0.3)
    assert any("--config.data.group='^[^/]+/([^/]+)/'" in note for note in found.notes)
    grouped = folders.image_folder(str(tmp_path), "train", 0.3, group="^[^/]+/([^/]+)/")
    assert not any("warning" in note for note in grouped.notes)
    assert grouped.groups[0].startswith("patient")
