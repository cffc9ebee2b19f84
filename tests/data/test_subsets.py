"""Subsets of classes and of examples per class: the right examples, their order and new labels."""

import dataclasses

import numpy as np
import pytest

from densenet_jax.data.reading import pipeline
from densenet_jax.data.sources import by_name, subsets
from densenet_jax.data.sources.source import DataError


def test_classes_are_numbered_anew_in_the_order_given():
    whole = by_name.load("digits", "train")
    part = by_name.load("digits", "train", classes=("7", "2"))
    assert part.class_names == ("7", "2")
    expected = np.flatnonzero(np.isin(whole.examples.labels, (7, 2)))
    assert len(part) == len(expected)
    np.testing.assert_array_equal(part.examples.images, whole.examples.images[expected])
    labels = np.where(whole.examples.labels[expected] == 7, 0, 1)
    np.testing.assert_array_equal(part.examples.labels, labels)


def test_per_class_keeps_the_first_examples():
    whole = by_name.load("digits", "train").examples
    part = by_name.load("digits", "train", per_class=3).examples
    assert np.bincount(part.labels).tolist() == [3] * 10
    firsts = np.sort(np.concatenate([np.flatnonzero(whole.labels == k)[:3] for k in range(10)]))
    np.testing.assert_array_equal(part.images, whole.images[firsts])


def test_records_and_files_are_chosen_without_reading_them_all(tiny, image_dir):
    part = by_name.load("tiny", "train", str(tiny), classes=("d", "b"), per_class=2)
    whole = by_name.load("tiny", "train", str(tiny))
    assert subsets.labels(part).tolist() == [1, 0, 1, 0]  # examples 1, 3, 5 and 7
    assert part.examples[3]["image"] == whole.examples[7]["image"]
    assert part.examples.__getitems__([3, 0])[0]["label"] == 0
    files = by_name.load("folder", "train", str(image_dir), classes=("dog",), per_class=1)
    assert files.describe(0).endswith("train/dog/0.jpg")
    assert files.examples[0]["label"] == 0


@pytest.mark.parametrize(
    ("classes", "count", "words"),
    [
        (("3", "x"), 0, "names 'x', which digits train does not have; its classes are 0, 1"),
        (("3", "3"), 0, "names a class twice"),
        (("3",), 1000, "fewer than the 1000"),
    ],
)
def test_mistakes_in_the_choice_of_classes(classes, count, words):
    with pytest.raises(DataError, match=words):
        by_name.load("digits", "train", classes=classes, per_class=count)


def test_accepted_labels_follow_the_choice_of_classes():
    whole = by_name.load("digits", "test")
    sets = [(i % 10, (i + 1) % 10) if i % 3 else () for i in range(len(whole))]
    part = subsets.choose(dataclasses.replace(whole, accepted=lambda: sets), ("7", "2"))
    new = {7: 0, 2: 1}
    rows = np.flatnonzero(np.isin(whole.examples.labels, (7, 2)))
    assert part.accepted() == [[new[label] for label in sets[row] if label in new] for row in rows]


def test_groups_and_columns_follow_the_choice():
    whole = by_name.load("digits", "test")
    names = [str(i) for i in range(len(whole))]
    whole = dataclasses.replace(whole, groups=names, columns={"row": names})
    part = subsets.choose(whole, ("7",))
    rows = np.flatnonzero(whole.examples.labels == 7)
    assert list(part.groups) == list(part.columns["row"]) == [names[row] for row in rows]


def test_an_unreadable_file_of_a_subset_in_memory_is_named_by_its_path(image_dir):
    (image_dir / "train" / "dog" / "1.jpg").write_bytes(b"no image")
    part = by_name.load("folder", "train", str(image_dir), classes=("dog",))
    with pytest.raises(DataError, match=r"train/dog/1\.jpg: "):
        pipeline.in_memory(part, image_size=8, strict=True)
