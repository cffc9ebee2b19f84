"""The learning-rate range test: where the loss falls fastest."""

import json

import numpy as np
import pytest

from densenet_jax.training.jobs import lr_range


def test_the_suggestion_is_where_the_loss_falls_fastest_before_its_minimum():
    rates = np.logspace(-6, 1, 100).tolist()
    # Flat, a fall around 1e-2 whose middle is steepest, and a rise.
    losses = [2 / (1 + (r / 1e-2) ** 2) + (r / 3) ** 3 for r in rates]
    assert lr_range.suggestion(rates, losses) == pytest.approx(1e-2, rel=0.25)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], [1.0] * 5])
def test_a_loss_that_never_falls_suggests_nothing(losses):
    rates = np.logspace(-6, 1, len(losses)).tolist()
    assert lr_range.suggestion(rates, losses) is None


def test_the_files(tmp_path):
    found = {"learning_rate": [0.1, 0.2], "loss": [2.0, 1.0], "suggestion": 0.1}
    table, plot = lr_range.write(found, tmp_path / "new")
    assert json.loads(table.read_text()) == found
    assert plot.read_text().startswith("<?xml")
