"""Every configuration: it loads, is complete, and describes the recipe it names."""

import importlib
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from densenet_jax.training import checks, experiment
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.schedules import Units
from densenet_jax.weights.published import IMAGENET

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


def load(name: str, *arguments: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


def keys(config: ConfigDict, prefix: str = "") -> set[str]:
    names = set()
    for key, value in config.items():
        names |= keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key}
    return names


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_sets_known_keys_and_valid_numbers(name):
    config = load(name)
    assert keys(config) == keys(load("default"))
    experiment.settle_preprocessing(config, IMAGENET)
    checks.check(config)
    docstring = importlib.import_module(f"configs.{name}").__doc__
    assert name == "default" or f"--config=configs/{name}.py" in docstring


def test_every_default_is_explained():
    source = (FOLDER / "default.py").read_text(encoding="utf-8")
    body = source.split("config = ConfigDict()")[1]
    assert body.count("#") >= 30  # a sentence for each group of keys


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("densenet")])
def test_imagenet_recipe_is_the_papers(name):
    config = load(name)
    assert config.model.name == name
    examples, epoch = 1_281_167, 1_281_167 / 256
    total = experiment.total_steps(config, examples)
    assert total == round(90 * epoch)
    rate = experiment.make_schedule(config, Units(total, epoch, 256))
    at = [float(rate(round(e * epoch))) for e in (0, 29.9, 30.1, 59.9, 60.1, 89.9)]
    np.testing.assert_allclose(at, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_cifar_argument_names_any_network():
    config = load("cifar10", "densenet_40_24")
    assert (config.model.depth, config.model.growth_rate) == (40, 24)
    assert config.model.bottleneck is False
    with pytest.raises(ValueError, match="densenet_bc_DEPTH_GROWTH"):
        load("cifar10", "resnet50")


def test_total_steps_wins_over_epochs():
    config = load("digits")
    assert experiment.total_steps(config, 1437) == round(config.total_epochs * 1437 / 64)
    config.total_steps = 7
    assert experiment.total_steps(config, 1437) == 7


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.learning_rate", float("nan"), "learning_rate is nan; it must be at least 0"),
        ("total_epochs", -1.0, "total_epochs is -1.0"),
        ("seed", -3, "seed is -3"),
        ("label_smoothing", 1.0, "label_smoothing is 1.0"),
        ("data.mean", (0.5, 0.5), "data.mean has 2 values for 1 channels"),
        ("data.interpolation", "cubic", "one of bicubic, bilinear"),
        ("model.block_sizes", (6, 0), "block_sizes is 0"),
        ("model.block_sizes", (6, 1.5), "whole numbers"),
        ("data.crop_scale", (1.0, 0.5), "the smaller first"),
        ("optimizer.warmup", "5", "config.optimizer.warmup is '5'; it must be a duration"),
        ("optimizer.step_boundaries", (0.5, 3.0), "step_boundaries is 3.0; it must be a duration"),
        ("optimizer.betas", (0.9,), "betas is .* two numbers"),
        ("optimizer.name", "adam", "one of sgd, adamw"),
        ("total_steps", 0, "total_steps is 0; it must be at least 1"),
    ],
)
def test_impossible_numbers_name_their_key(key, value, words):
    config = load("digits")
    experiment.settle_preprocessing(config, IMAGENET)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=words):
        checks.check(config)
