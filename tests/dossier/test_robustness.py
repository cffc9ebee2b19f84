"""Changes of images: of the wanted strength, for any type and number of channels, repeatable."""

import numpy as np
import pytest

from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.dossier import robustness

BY_NAME = {change.name: change for change in robustness.CHANGES}


def held(dtype, channels, high):
    rng = np.random.default_rng(0)
    images = (rng.uniform(0.3, 0.6, (2, 32, 32, channels)) * high).astype(dtype)
    return Source(Arrays(images, np.zeros(2, np.int32), np.zeros(2, np.int32)), ("a",))


@pytest.mark.parametrize(
    ("dtype", "channels", "high"), [("u1", 3, 255), ("u2", 1, 4000), ("f4", 5, 2)]
)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_kind_of_image_is_changed_more_and_more(name, dtype, channels, high):
    source, change = held(dtype, channels, high), BY_NAME[name]
    plain = source.examples.images.astype(np.float64)
    moved = []
    for strength in change.strengths:
        found = robustness.changed(source, (0, high), change, strength).examples.images
        assert (found.dtype, found.shape) == (plain.astype(dtype).dtype, plain.shape)
        moved.append(np.abs(found - plain).mean() / high)
        again = robustness.changed(source, (0, high), change, strength).examples.images
        np.testing.assert_array_equal(found, again)
    assert moved == sorted(moved)
    assert moved[0] > 0.001
    assert moved[-1] > 0.02
    if name in ("brighter", "darker"):
        assert moved == pytest.approx(np.abs(change.strengths), abs=0.01)
    if name == "noise":  # the mean of |x| is 0.8 standard deviations
        assert moved == pytest.approx(np.array(change.strengths) * 0.798, rel=0.05)


def test_numbers_beyond_black_and_white_stay():
    images = np.array([-3.0, 0.5, 7.0], np.float32).reshape(1, 1, 3, 1)
    source = Source(Arrays(images, np.zeros(1), np.zeros(1)), ("a",))
    found = robustness.changed(source, (0, 1), BY_NAME["brighter"], 0.2).examples.images
    assert found.ravel() == pytest.approx([-2.8, 0.7, 7.0])
