"""The weights of the package: they load by name, and keep their accuracy."""

import pathlib

import numpy as np
import pytest

from densenet_jax.prediction.predict import predict
from densenet_jax.weights import load, trained
from densenet_jax.weights.readers.bounded_file import WeightsError

IMAGES = pathlib.Path(__file__).parents[1] / "golden" / "cifar10_test_1000.npz"
# Of the first 1,000 test images of CIFAR-10: how many are recognised.
RIGHT = {"densenet_bc_100_12.cpu_c10": 949, "densenet_cifar.cpu30_c10": 892}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Returns the paths and labels of the first 1,000 test images, as WebP without loss."""
    folder = tmp_path_factory.mktemp("cifar10")
    with np.load(IMAGES) as stored:
        files = np.split(stored["images"], np.cumsum(stored["lengths"])[:-1])
        labels = stored["labels"]
    paths = [folder / f"{i:04}.webp" for i in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file.tobytes())
    return list(map(str, paths)), labels


def test_every_folder_is_a_name():
    assert set(trained.TRAINED) == {path.name for path in trained.FOLDER.iterdir()} == set(RIGHT)
    for name in trained.TRAINED:
        files = {path.name for path in (trained.FOLDER / name).iterdir()}
        assert files == {
            *("README.md", "config.json", "metrics.jsonl", "model.json", "model.safetensors"),
            "run.json",
        }


@pytest.mark.parametrize("name", trained.TRAINED)
def test_accuracy(name, images):
    paths, labels = images
    found = load(name)
    model = (found.model, found.variables, found.preprocessing, found.class_names)
    answers = list(predict(*model, paths, outputs=found.outputs, top=1, batch_size=500))
    classes = np.array([answer.classes[0] for answer in answers])
    assert answers[0].labels[0] == found.class_names[classes[0]]
    assert abs((classes == labels).sum() - RIGHT[name]) <= 2  # sums differ between processors


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(WeightsError, match=r"cpu30_c10"):
        load("densenet_cifar.cpu30_c01")
