"""The data card: counts, balance, equal images within and between splits, checksums."""

import dataclasses

import numpy as np

from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.dossier import data_card


def split(images, labels, name="s", task="classification", groups=None):
    pixels = np.array(images, np.uint8).reshape(-1, 1, 1, 1)
    labels = np.array(labels, np.int32 if task == "classification" else np.float32)
    return Source(Arrays(pixels, labels), ("a", "b"), name, task=task, groups=groups)


def test_duplicates_conflicts_and_leaks_are_counted():
    train = split([1, 2, 1, 1], [0, 1, 0, 1], "train", groups=["p", "q", "p", "p"])
    test = split([3, 2, 2], [0, 1, 1], "test", groups=["r", "q", "q"])
    found = data_card.describe({"training": train, "scored here": test})
    first, second = found["splits"]
    assert (first["examples"], first["groups"]) == (4, 2)
    assert (first["duplicates"], first["conflicts"]) == (2, 1)
    assert (second["duplicates"], second["conflicts"]) == (1, 0)
    (shared,) = found["shared"]
    assert (shared["images"], shared["groups"]) == (2, 1)
    assert shared["named"][0] == "example 1 of train = example 1 of test"
    assert [row["cells"][0]["count"] for row in found["labels"]] == [2, 2]
    assert [row["cells"][1]["share"] for row in found["labels"]] == [1 / 3, 2 / 3]


def test_unknown_groups_are_not_none_in_common():
    found = data_card.describe({"a": split([1], [0]), "b": split([2], [0])})
    assert found["shared"][0]["groups"] is None


def test_balance_of_labels_and_numbers_counts_what_is_known():
    labels = np.array([[1, np.nan], [0, np.nan], [np.nan, np.nan]], np.float32)
    known, never = data_card.balance("multilabel", labels, 2)
    assert known == {"known": 2, "count": 1, "share": 0.5}
    assert never == {"known": 0, "count": 0, "share": None}
    known, never = data_card.balance("regression", labels, 2)
    assert known == {"known": 2, "mean": 0.5, "std": 0.5, "low": 0.0, "high": 1.0}
    assert never == {"known": 0, **dict.fromkeys(("mean", "std", "low", "high"))}


def test_the_checksum_changes_with_anything():
    plain = split([1, 2], [0, 1])
    sums = [
        data_card.describe({"x": own})["splits"][0]["checksum"]
        for own in (
            plain,
            plain,
            split([1, 3], [0, 1]),
            split([2, 1], [0, 1]),
            split([1, 2], [1, 1]),
            dataclasses.replace(plain, class_names=("a", "c")),
        )
    ]
    assert sums[0] == sums[1]
    assert len(set(sums)) == 5
