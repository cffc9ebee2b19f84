"""Scores of subgroups."""

import dataclasses

import numpy as np
import pytest

from densenet_jax.report import subgroups
from densenet_jax.scores import ranking

from .conftest import some_numbers, some_predictions


def test_each_value_of_a_column_has_its_score(labels):
    found = subgroups.table(labels)
    assert [(r["column"], r["value"]) for r in found["rows"]] == [
        *(("sex", value) for value in (subgroups.BLANK, "F", "M")),
        *(("decade", value) for value in ("9", "10", "20")),  # in the order of the numbers
    ]
    assert found["left_out"] == ["age (60 values)", "site (1 value)"]
    row = found["rows"][1]
    inside = labels.columns["column_sex"] == "F"
    assert row["examples"] == inside.sum()
    assert row["groups"] == len(set(labels.columns["group"][inside]))
    areas = ranking.by_label(labels.values[inside], labels.labels[inside])["auroc"]
    assert row["cells"][0][0] == pytest.approx(np.nanmean(areas))
    assert row["labels"] == 2
    assert row["by_label"][2] is None  # of the label without positives
    assert row["by_label"][0][0] == pytest.approx(areas[0], abs=1e-4)


def test_a_classification_has_its_accuracy():
    columns = {"column_sex": np.array(list("FFMM"))}
    found = subgroups.table(dataclasses.replace(some_predictions(), columns=columns))
    assert [row["cells"][0][0] for row in found["rows"]] == [0.5, 0.5]
    assert not found["grouped"]


def test_numbers_have_their_mean_absolute_error():
    found = some_numbers()
    columns = {"column_sex": np.array(["F", "M"] * 30)}
    table = subgroups.table(dataclasses.replace(found, columns=columns))
    assert table["heads"] == ["age", "weight"]
    expected = np.nanmean(np.abs(found.values - found.labels)[::2], axis=0)
    assert [cell[0] for cell in table["rows"][0]["cells"]] == pytest.approx(expected.tolist())


def test_without_columns_there_is_no_table(labels):
    groups_alone = {"group": labels.columns["group"]}
    assert subgroups.table(dataclasses.replace(labels, columns=groups_alone)) is None
    values = np.full_like(labels.values, np.nan)
    assert subgroups.table(dataclasses.replace(labels, values=values)) is None
