"""The size of evaluation batches."""

import pytest

from densenet_jax.training.batches import eval_batch_size


@pytest.mark.parametrize(
    ("most", "examples", "devices", "expected"),
    [
        (256, 1000, 1, 256),
        (256, 129, 1, 256),
        (256, 128, 1, 128),
        (256, 32, 1, 32),
        (256, 1, 1, 1),
        (250, 30, 1, 125),  # which no two halves make
        (256, 3, 8, 8),
        (24, 3, 8, 24),  # 12 cannot be split over 8 devices
    ],
)
def test_a_small_split_has_small_batches(most, examples, devices, expected):
    assert eval_batch_size(most, examples, devices) == expected
