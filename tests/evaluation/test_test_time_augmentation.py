"""The pixels of an image's views, and the average of their predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.evaluation import test_time_augmentation
from densenet_jax.tasks.by_name import find_task

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 7, 6, 3), np.uint8)


class Model:
    """A model whose logits are linear in the pixels."""

    @staticmethod
    def apply(variables, images):
        return images.reshape(len(images), -1) @ variables


def test_five_crops_are_centre_and_corners():
    found = test_time_augmentation.cut(IMAGES, 4, 5, flip=False)
    expected = [(2, 1), (0, 0), (0, 2), (3, 0), (3, 2)]
    for view, (y, x) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(view, IMAGES[:, y : y + 4, x : x + 4])


def test_flips_follow_the_crops():
    found = test_time_augmentation.cut(IMAGES, 4, 5, flip=True)
    assert found.shape == (10, 2, 4, 4, 3)
    np.testing.assert_array_equal(found[5:], found[:5, :, :, ::-1])


@pytest.mark.parametrize(("crops", "flip"), [(1, False), (1, True), (5, True)])
def test_probabilities_are_averaged(crops, flip):
    weights = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    normalize = lambda images: images / 255  # noqa: E731
    predict = test_time_augmentation.predictor(
        Model, normalize, 4, find_task("classification"), crops=crops, flip=flip
    )
    logits = predict(weights, IMAGES)
    singles = [
        Model.apply(weights, v / 255) for v in test_time_augmentation.cut(IMAGES, 4, crops, flip)
    ]
    mean = np.mean([jax.nn.softmax(single) for single in singles], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(logits), mean, rtol=1e-5)
    if len(singles) == 1:
        np.testing.assert_array_equal(logits, jnp.asarray(singles[0]))
