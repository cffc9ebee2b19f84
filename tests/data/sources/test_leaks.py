"""Images and groups in two splits are found, by the start of a run on a sample."""

import numpy as np
import pytest

from densenet_jax.data.sources import by_name, leaks
from densenet_jax.data.sources.columns import Column
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import Arrays, Source


def files(folder, name, contents, groups=None):
    (folder / name).mkdir()
    for i, content in enumerate(contents):
        if content is not None:
            (folder / name / f"{i}.jpg").write_bytes(content)
    paths = [f"{name}/{i}.jpg" for i in range(len(contents))]
    labels = np.zeros(len(contents), np.int32)
    groups = groups and Column.of(groups)
    return Source(Files(str(folder), paths, labels), ("a", "b"), name, groups=groups)


def test_equal_files_and_groups(tmp_path):
    same, near = b"\0" * 9000, b"\1" + b"\0" * 8999  # equal but for the first byte
    train = files(tmp_path, "train", [b"one", same, b"three"], ["p1", "p2", "p3"])
    val = files(tmp_path, "val", [b"two", near, same, None], ["p4", "p3", "p2", "p5"])
    assert leaks.find(train, val) == leaks.Leaks([(1, 2)], ["p2", "p3"])
    groups, images = leaks.notes(train, val)
    assert groups.startswith("WARNING: 2 groups are in train and in val, as 'p2'")
    assert images.startswith("WARNING: 1 images of val are also in train, as")
    assert "val/2.jpg" in images
    assert "train/1.jpg" in images


def test_different_splits_have_no_notes(tmp_path):
    train = files(tmp_path, "train", [b"one"], ["p1"])
    assert leaks.notes(train, files(tmp_path, "val", [b"two"], ["p2"])) == ()


def test_the_notes_are_of_a_sample_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "FEW_FIRST", 10)
    monkeypatch.setattr(leaks, "FEW_SECOND", 5)
    monkeypatch.setattr(leaks, "WHOLE", 6)
    read = []
    monkeypatch.setattr(Files, "__getitem__", lambda self, i: read.append(i) or {"image": b"x"})
    train, val = (files(tmp_path, name, [b"x"] * 40) for name in ("train", "val"))
    (note,) = leaks.notes(train, val)
    assert "images of a sample of val" in note
    assert len(read) <= 6
    assert leaks._spread(40, 5) == [0, 9, 19, 29, 39]


@pytest.mark.parametrize("encoded", [False, True])
def test_examples_that_are_not_files(encoded):
    images = np.arange(5 * 4 * 4).reshape(5, 4, 4, 1).astype(np.uint8)
    train, val = (Source(Arrays(i, np.zeros(len(i), int)), ("a",)) for i in (images, images[3:]))
    if encoded:
        train, val = (
            Source([{"image": i.tobytes()} for i in s.examples.images], ("a",))
            for s in (train, val)
        )
    assert leaks.find(train, val).images == [(3, 0), (4, 1)]
    assert leaks.notes(train, val) == ()


def test_the_digits_do_not_leak():
    splits = (by_name.load("digits", split) for split in ("train", "test"))
    assert leaks.find(*splits) == leaks.Leaks([], [])
