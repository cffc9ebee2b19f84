"""What the page shows of predicted numbers."""

import dataclasses

import numpy as np
import pytest

from densenet_jax.report import number_scores

from .conftest import some_numbers


def test_errors_with_intervals():
    found = some_numbers()
    age, weight = number_scores.about(found)["classes"]
    known = ~np.isnan(found.labels[:, 0])
    errors = np.abs(found.values - found.labels)[known, 0]
    assert age["examples"] == known.sum()
    assert age["mae"] == pytest.approx(errors.mean(), rel=1e-6)
    for key in ("mae", "rmse", "r2"):
        low, high = age[f"{key}_interval"]
        assert low < age[key] < high
    assert weight["examples"] == len(found.labels)


def test_at_most_2000_points():
    found = some_numbers(3000)
    age, weight = number_scores.details(found)
    assert len(age["points"]) == len(weight["points"]) == 2000
    assert weight["examples"] == 3000
    assert age["examples"] < 3000
    assert weight["points"] == number_scores.details(found)[1]["points"]  # the same every time


def test_no_errors_if_an_answer_is_not_finite():
    found = some_numbers()
    values = found.values.copy()
    values[0, 0] = np.inf
    record = number_scores.about(dataclasses.replace(found, values=values))
    assert "mae" not in record
