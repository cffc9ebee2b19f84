"""The preprocessing of KerasHub's presets, and what cannot be done as they say."""

import json
import logging

import numpy as np
import pytest

from densenet_jax.weights import WeightsError
from densenet_jax.weights.keras_preset import read_preprocessing
from densenet_jax.weights.published import IMAGENET, Preprocessing

# Mean and deviation of ImageNet.
SCALE = [1 / 255 / s for s in IMAGENET.std]
OFFSET = [-m / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)]


def converter(**config):
    config = {"image_size": [64, 64], "scale": SCALE, "offset": OFFSET} | config
    return {"class_name": "DenseNetImageConverter", "config": config}


def write(folder, contents, name="image_converter.json"):
    (folder / name).write_text(json.dumps(contents))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("image_converter.json", lambda x: x),
        ("preprocessor.json", lambda x: {"class_name": "P", "config": {"image_converter": x}}),
        (
            "task.json",
            lambda x: {
                "class_name": "T",
                "config": {
                    "preprocessor": {"class_name": "P", "config": {"image_converter": x}},
                },
            },
        ),
    ],
)
def test_the_converter_is_found(tmp_path, name, wrap):
    found = read_preprocessing(write(tmp_path, wrap(converter(interpolation="bicubic")), name))
    assert (found.mean, found.std) == (IMAGENET.mean, IMAGENET.std)
    assert (found.image_size, found.crop_fraction, found.fit) == (64, 1, "crop")
    assert found.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"scale": 1 / 255, "offset": None}, (0, 0, 0), (1, 1, 1)),
        ({"scale": None, "offset": None}, (0, 0, 0), (1 / 255,) * 3),
        ({"scale": 1 / 127.5, "offset": -1}, (0.5,) * 3, (0.5,) * 3),
        ({"scale": [2 / 255], "offset": -0.5}, (0.25,), (0.5,)),
        # As older versions wrote it.
        ({"scale": 1 / 255, "mean": [0.1, 0.2], "variance": [0.04, 0.25]}, (0.1, 0.2), (0.2, 0.5)),
        ({"scale": 1, "mean": [51.0], "variance": [51.0**2]}, (0.2,), (0.2,)),
    ],
)
def test_scale_and_offset(tmp_path, config, mean, std):
    """A pixel p becomes `p * scale + offset`, which is `(p / 255 - mean) / std`."""
    found = read_preprocessing(write(tmp_path, converter(**config)))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found.std, std, rtol=1e-8)


@pytest.mark.parametrize(
    ("config", "fit"),
    [
        ({"crop_to_aspect_ratio": True}, "crop"),
        ({"crop_to_aspect_ratio": False}, "squash"),
        ({"pad_to_aspect_ratio": True, "crop_to_aspect_ratio": False}, "pad"),
    ],
)
def test_images_that_are_not_square(tmp_path, caplog, config, fit):
    caplog.set_level(logging.INFO)
    assert read_preprocessing(write(tmp_path, converter(**config))).fit == fit
    assert "without antialiasing" in caplog.text
    assert ("with black" in caplog.text) == (fit == "pad")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (converter(image_size=[64, 32]), "square"),
        (converter(image_size=[0, 0]), "image_size is 0"),
        (converter(interpolation="lanczos3"), "lanczos3"),
        (converter(scale=0), "image_converter"),
        (converter(scale=-1), "std is"),
        (converter(scale=[1, 2], offset=[1, 2, 3]), "image_converter"),
        (converter(scale="a" * 999), "image_converter"),
        (converter(offset=float("nan")), "mean is nan"),
        (converter(variance=[-1], mean=[0]), "image_converter"),
        ({"class_name": "DenseNetImageConverter"}, "config"),
        ({"config": {}}, "class_name"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, contents, words):
    with pytest.raises(WeightsError, match=words):
        read_preprocessing(write(tmp_path, contents))


def test_a_preset_without_a_converter(tmp_path, caplog):
    write(tmp_path, {"class_name": "T", "config": {"preprocessor": None}}, "task.json")
    assert read_preprocessing(str(tmp_path)) == Preprocessing()
    assert "the mean and deviation of ImageNet are assumed" in caplog.text
