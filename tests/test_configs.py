"""Every configuration: it loads, is complete, and describes the recipe it names."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from densenet_jax.training import checks, experiment
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.optimizer import decay_mask, make_optimizer, make_schedule
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
    options = config.optimizer
    rate = make_schedule(
        options.schedule,
        learning_rate=options.learning_rate,
        total_steps=total,
        boundaries=options.step_boundaries,
        factor=options.step_factor,
    )
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


def test_warmup_then_cosine_to_zero():
    rate = make_schedule("cosine", learning_rate=0.4, total_steps=100, warmup_steps=10)
    np.testing.assert_allclose(
        [float(rate(s)) for s in (0, 5, 10, 55, 100)], [0, 0.2, 0.4, 0.2, 0], atol=1e-6
    )


def test_unknown_schedule_is_named():
    with pytest.raises(ConfigError, match="'linear'; it must be 'cosine'"):
        make_schedule("linear", learning_rate=0.1, total_steps=10)


def test_only_kernels_decay():
    params = {"a": {"kernel": 1.0}, "b": {"scale": 1.0, "bias": 1.0}}
    expected = {"a": {"kernel": True}, "b": {"scale": False, "bias": False}}
    assert jax.tree.all(jax.tree.map(lambda x, y: x == y, decay_mask(params), expected))


def test_frozen_parts_do_not_move():
    params = {
        "conv0": {"kernel": jnp.ones(3)},
        "denseblock1": {"denselayer1": {"norm1": {"scale": jnp.ones(3)}}},
        "classifier": {"kernel": jnp.ones(3), "bias": jnp.ones(3)},
    }
    optimizer = make_optimizer(lambda _: 0.1, frozen=("stem", "block1"))
    changes, _ = optimizer.update(params, optimizer.init(params), params)
    moved = jax.tree.map(lambda x: bool(jnp.any(x != 0)), changes)
    assert moved["classifier"] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves([moved["conv0"], moved["denseblock1"]]))
    with pytest.raises(ConfigError, match="has block7; the parts of this model are block1, head"):
        make_optimizer(lambda _: 0.1, frozen=("block7",)).init(params)


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
        ("total_steps", 0, "total_steps is 0; it must be at least 1"),
    ],
)
def test_impossible_numbers_name_their_key(key, value, words):
    config = load("digits")
    experiment.settle_preprocessing(config, IMAGENET)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=words):
        checks.check(config)
