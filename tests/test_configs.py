"""Every configuration: it loads, is complete, and describes the recipe it names."""

import importlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from densenet_jax.configs import default
from densenet_jax.training import checks, settings
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.masks import decay_mask
from densenet_jax.training.schedules import Units
from densenet_jax.training.settings import make_schedule
from densenet_jax.weights.published import IMAGENET

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem[0] != "_")


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
    settings.settle_preprocessing(config, IMAGENET)
    checks.check(config)
    docstring = importlib.import_module(f"configs.{name}").__doc__
    assert name == "default" or f"--config=configs/{name}.py" in docstring


@pytest.mark.parametrize("option", default.OPTIONS, ids=lambda option: option.key)
def test_every_option_is_explained_and_its_default_is_in_its_range(option):
    assert len(option.about.split()) >= 2
    assert option.about.endswith(".")
    assert option.default is not None or option.kind is not None
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    durations = option.key == "optimizer.step_boundaries"
    assert not numbers or durations or option.range is not None
    assert all(option.range[0] <= number <= option.range[1] for number in numbers if option.range)


def test_no_option_is_there_twice():
    names = [option.key for option in default.OPTIONS]
    assert len(names) == len(set(names))
    assert set(names) == keys(default.get_config())


EXAMPLES = 1_281_167  # ImageNet's training images
DENSENETS = [n for n in NAMES if n.startswith("densenet")]


def rates(config: ConfigDict, *epochs: float) -> list[float]:
    """Returns the learning rate after some epochs of a run on ImageNet."""
    steps_per_epoch = EXAMPLES / config.batch_size
    total = settings.total_steps(config, EXAMPLES)
    assert total == round(config.total_epochs * steps_per_epoch)
    rate = settings.make_schedule(config, Units(total, steps_per_epoch, config.batch_size))
    return [float(rate(round(epoch * steps_per_epoch))) for epoch in epochs]


@pytest.mark.parametrize("name", DENSENETS)
@pytest.mark.parametrize("argument", ["", "paper"])
def test_imagenet_recipe_is_the_papers(name, argument):
    config = load(name, argument)
    assert config.model.name == name
    assert (config.batch_size, config.total_epochs, config.label_smoothing) == (256, 90, 0)
    options = config.optimizer
    assert (options.name, options.momentum, options.nesterov) == ("sgd", 0.9, True)
    assert options.weight_decay == 1e-4
    got = rates(config, 0, 29.9, 30.1, 59.9, 60.1, 89.9)
    np.testing.assert_allclose(got, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize("name", DENSENETS)
def test_mindcvs_recipe(name):
    config = load(name, "mindcv")
    assert (config.batch_size, config.total_epochs, config.label_smoothing) == (256, 120, 0.1)
    assert (config.data.crop_scale, config.augment.flip) == ((0.08, 1.0), True)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    wanted = [0.1, 0.05 * (1 + math.cos(math.pi / 4)), 0.05, 0]
    np.testing.assert_allclose(rates(config, 0, 30, 60, 120), wanted, atol=1e-6)


def test_strong_recipe():
    config = load("densenet121", "strong")
    assert config.batch_size == 1024
    got = rates(config, 0, 2.5, 5, 152.5, 300)
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 0.25, 0], atol=1e-3)
    # The averages reach over a small part of the run, and a test image is larger than in training.
    assert 1 / (1 - config.ema_decay) < 0.05 * settings.total_steps(config, EXAMPLES)
    assert config.data.train_sizes[-1] < IMAGENET.image_size
    assert math.floor(IMAGENET.image_size / config.data.eval_crop) == 232


def test_large_batch_recipe_scales_the_rate_with_the_batch():
    config = load("densenet121", "large_batch")
    units = Units(total_steps=90 * 156, steps_per_epoch=156, batch_size=8192)
    schedule = make_schedule(config, units)
    warmup, epoch = 5 * 156, 156
    assert float(schedule(0)) == 0
    np.testing.assert_allclose(schedule(warmup // 2), 1.6, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup), 0.1 * 8192 / 256, rtol=1e-6)
    np.testing.assert_allclose(schedule(31 * epoch), 0.32, rtol=1e-6)
    config.batch_size = 256
    at_256 = make_schedule(config, units)(warmup)
    np.testing.assert_allclose(at_256, 0.1, rtol=1e-6)
    config.optimizer.reference_batch_size = None
    assert make_schedule(config, units)(warmup) == at_256


def test_lars_recipe_is_googles():
    """github.com/tensorflow/tpu: 3,558 steps of 32,768 images, up to 32 and down by a square."""
    config = load("densenet121", "lars")
    steps = settings.total_steps(config, EXAMPLES)
    assert (config.batch_size, steps, config.label_smoothing) == (32768, 3558, 0.1)
    units = Units(total_steps=91 * 40, steps_per_epoch=40, batch_size=config.batch_size)
    schedule = make_schedule(config, units)
    got = [float(schedule(40 * epoch)) for epoch in (0, 7, 14, 52.5, 91)]
    np.testing.assert_allclose(got, [0, 16, 32, 8, 0], atol=1e-4)
    params = {"conv0": {"kernel": jnp.full(4, 2.0)}, "norm0": {"scale": jnp.full(4, 2.0)}}
    gradients = jax.tree.map(lambda x: 0 * x + 0.5, params)
    method = settings.make_optimizer(config, lambda _: 32.0)
    changes, state = method.update(gradients, method.init(params), params)
    # The kernel's step is its norm times rate and coefficient, decay or not; the scale's is SGD's.
    np.testing.assert_allclose(changes["conv0"]["kernel"], -32 * 0.001 * 2, rtol=1e-6)
    np.testing.assert_allclose(changes["norm0"]["scale"], -32 * 0.5, rtol=1e-6)
    again, _ = method.update(gradients, state, params)
    np.testing.assert_allclose(again["norm0"]["scale"], -32 * 0.5 * 1.9, rtol=1e-6)  # momentum 0.9
    config.batch_size = 8192
    np.testing.assert_allclose(make_schedule(config, units)(14 * 40), 8, rtol=1e-6)


def test_rdnets_recipe():
    config = load("rdnet_tiny")
    assert (config.batch_size, config.optimizer.name) == (512, "adamw")
    assert (config.augment.mixup, config.augment.cutmix) == (0.8, 1.0)
    got = rates(config, 0, 10, 20, 160, 300)
    np.testing.assert_allclose(got, [0, 5e-4, 1e-3, 5e-4, 0], atol=1e-6)
    assert settings.build_model(config).drop_path_rate == 0.15  # the variant's


@pytest.mark.parametrize("name", ["densenet121", "densenetblur121d", "rdnet_tiny"])
def test_every_kernel_decays_and_nothing_else(name):
    config = load(name)
    model = settings.build_model(config)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    mask = decay_mask(params)
    shapes = jax.tree.map(lambda x, decays: decays == (x.ndim > 1), params, mask)
    assert jax.tree.all(shapes)  # scales, biases and layer scales are vectors


@pytest.mark.parametrize("name", [*DENSENETS, "rdnet_tiny"])
def test_tiny_shrinks_any_recipe(name):
    for recipe in ("paper,tiny", "tiny"):
        config = load(name, recipe)
        assert (config.batch_size, config.total_steps, config.data.image_size) == (8, 20, 64)
    with pytest.raises(ValueError, match=rf"configs/{name}.py takes one of paper.*not 'papre'"):
        load(name, "papre")


def test_finetune_takes_weights_and_data():
    config = load("finetune", "densenet121.ra_in1k,cifar10")
    assert (config.init_from, config.model.name) == ("densenet121.ra_in1k", "densenet121")
    assert (config.data.name, config.data.eval_split) == ("cifar10", "test")
    options = config.optimizer
    assert (options.name, options.momentum, options.learning_rate) == ("sgd", 0.9, 1e-3)
    for argument in ("densenet121.ra_in1k", ",cifar10", ""):
        with pytest.raises(ValueError, match="takes weights and a data set"):
            load("finetune", argument)


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("densenet169.tv_in1k", "densenet169"),
        ("hf-hub:timm/densenetblur121d.ra_in1k@main", "densenetblur121d"),
        ("/some/where/densenet264d-abc.safetensors", "densenet264d"),
        ("rdnet_small", "rdnet_small"),
        ("model.safetensors", ""),
    ],
)
def test_finetune_asks_the_name_of_the_weights(source, network):
    config = load("finetune", f"{source},folder")
    assert config.model.name == network
    if not network:
        with pytest.raises(ConfigError, match="does not say which network to build"):
            settings.build_model(config)


def test_cifar_argument_names_any_network():
    config = load("cifar10", "densenet_40_24")
    assert (config.model.depth, config.model.growth_rate) == (40, 24)
    assert config.model.bottleneck is False
    with pytest.raises(ValueError, match="densenet_bc_DEPTH_GROWTH"):
        load("cifar10", "resnet50")


@pytest.mark.parametrize("recipe", ["modern", "speed", "cpu", "cpu30", "densenet_bc_22_12,modern"])
def test_recipes_of_cifar_have_known_keys_and_valid_numbers(recipe):
    config = load("cifar10", recipe)
    assert keys(config) == keys(load("default"))
    settings.settle_preprocessing(config, IMAGENET)
    checks.check(config)
    assert settings.build_model(config).num_classes == 10
    assert f"  {recipe.split(',')[-1]} " in importlib.import_module("configs.cifar10").__doc__


def test_total_steps_wins_over_epochs():
    config = load("digits")
    assert settings.total_steps(config, 1437) == round(config.total_epochs * 1437 / 64)
    config.total_steps = 7
    assert settings.total_steps(config, 1437) == 7


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
        ("optimizer.restarts", ("3 days",), "restarts is '3 days'; it must be a duration"),
        ("optimizer.restart_factor", -0.5, "restart_factor is -0.5; it must be at least 0"),
        ("optimizer.betas", (0.9,), "betas is .* two numbers"),
        ("optimizer.name", "adam", "one of sgd, adamw"),
        ("total_steps", 0, "total_steps is 0; it must be at least 1"),
    ],
)
def test_impossible_numbers_name_their_key(key, value, words):
    config = load("digits")
    settings.settle_preprocessing(config, IMAGENET)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=words):
        checks.check(config)
