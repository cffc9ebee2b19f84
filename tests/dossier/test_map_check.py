"""The check of activation maps: correlations by rank, and parts that become random in order."""

import jax
import numpy as np
import pytest
from scipy import stats

from densenet_jax.dossier import map_check
from densenet_jax.models.variants import create_model
from tests.report.conftest import random_variables


def test_correlations_are_spearmans():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).round(1)
    expected = [stats.spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b, strict=True)]
    assert map_check.correlations(a, b) == pytest.approx(expected)
    assert map_check.correlations(a, 3 * a + 1) == pytest.approx(np.ones(5))
    assert np.isnan(map_check.correlations(a, np.zeros_like(a))).all()


@pytest.mark.parametrize(
    ("model", "fields", "order"),
    [
        ("densenet_cifar", {"growth_rate": 4}, ["last norm", "block 2", "block 1", "stem"]),
        (
            "rdnet_tiny",
            {"growth_rates": (8, 8), "halving": (1,), "gated_from": 1, "stem_features": 8},
            ["last norm", "block 2", "block 1", "stem"],
        ),
    ],
)
def test_parts_become_random_from_the_output_to_the_input(model, fields, order, monkeypatch):
    fields |= {"block_sizes": (1, 1)}
    network = create_model(model, num_classes=3, in_channels=1, **fields)
    variables = random_variables(network, size=32)
    fresh = random_variables(network, seed=1, size=32)
    monkeypatch.setattr(jax, "jit", lambda function: lambda *_: fresh)
    setup = type("Setup", (), {"model": network, "image_shape": (32, 32, 1)})
    found = map_check.cascade(setup, variables)
    assert [name for name, _ in found] == ["classifier", *order]
    same = [
        sum(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (own, fresh)), strict=True))
        for _, own in found
    ]
    assert same == sorted(set(same))  # each stage makes more leaves random
    assert same[-1] == len(jax.tree.leaves(fresh))
