"""Statistics of a split, and the flags that normalise it."""

import numpy as np
import pytest

from densenet_jax.cli import main
from densenet_jax.data import statistics
from densenet_jax.data.sources.source import Arrays, DataError, Source


def split(images):
    return Source(Arrays(images, np.zeros(len(images), np.int32)), ("a", "b"), "some/train")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_mean_and_deviation_of_every_channel(dtype):
    rng = np.random.default_rng(0)
    images = rng.normal([40, 80, 120, 160], [4, 8, 12, 16], (50, 8, 8, 4)).astype(dtype)
    found = statistics.measure(split(images), image_size=8, channels=4)
    values = images.reshape(-1, 4).astype(float)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-6)
    low, high = found.ends
    assert (found.kind.dtype, found.images, found.unreadable) == (dtype, 50, 0)
    if dtype != "float32":
        assert (low, high) == (0, 255)  # of 16 bits, no more than 8 are used
    mean = found.flags()[-2].partition("=(")[2].strip(",)").split(",")
    np.testing.assert_allclose(np.array(mean, float), (values.mean(0) - low) / (high - low), 1e-3)
    assert (found.flags()[0].startswith("--config.data.value_range=")) == (dtype != "uint8")


def test_images_that_differ_or_cannot_be_read():
    broken = Source([{"image": b"no image", "label": 0}] * 3, ("a", "b"), "some/train")
    with pytest.raises(DataError, match="No image of some/train can be read"):
        statistics.measure(broken)
    wide, narrow = np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 3), np.uint8)
    mixed = [{"image": image, "label": 0} for image in [wide] * 20 + [narrow]]
    with pytest.raises(DataError, match="uint8 pixels instead of uint16, unlike the first"):
        statistics.measure(Source(mixed, ("a", "b"), "some/train"))


def test_the_command(capsys):
    assert main(["main.py", "statistics", "--config=configs/digits.py", "--images=100"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "100 images of digits train, uint8"
    assert said[-2].startswith("--config.data.mean=(0.3")
    assert main(["main.py", "statistics", "--config=configs/digits.py", "--images=few"]) == 2
