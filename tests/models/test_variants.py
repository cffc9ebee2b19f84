"""The table of variants: sizes, names, fields, and what every model can do."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.models import summary
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet
from densenet_jax.models.variants import (
    FAMILY,
    VARIANTS,
    DenseNetName,
    RDNetName,
    create_model,
    list_models,
)
from tests.random_variables import random_variables

# From the papers, torchvision and timm; counted there, not here.
PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet264": 33_337_704,
    "densenet264d": 72_736_216,
    "densenetblur121d": 7_998_088,
    "rdnet_tiny": 23_863_008,
    "rdnet_small": 50_436_448,
    "rdnet_base": 87_451_096,
    "rdnet_large": 186_269_632,
    "densenet_40_12": 1_019_722,
    "densenet_100_12": 6_979_642,
    "densenet_100_24": 27_249_082,
    "densenet_bc_100_12": 769_162,
    "densenet_bc_190_40": 25_624_430,
    "densenet_bc_250_24": 15_324_406,
}
# 1e9 multiply-adds at 224 pixels as torchvision's and timm's tables round them.
MULTIPLY_ADDS = {
    "densenet121": 2.83,
    "densenet161": 7.73,
    "densenet169": 3.36,
    "densenet201": 4.29,
    "rdnet_tiny": 5.0,
    "rdnet_small": 8.7,
    "rdnet_base": 15.4,
    "rdnet_large": 34.7,
}
TINY = {"block_sizes": (1, 2), "growth_rate": 4, "stem_features": 8, "num_classes": 3}


def images(size=16, batch=2, channels=3, dtype=np.float32):
    shape = (batch, size, size, channels)
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_multiply_adds(name):
    """Fails for a variant without a count, and for one whose count is not what the module has."""
    assert name in PARAMETERS, f"{name} needs a published parameter count here"
    size = summary.count(create_model(name), VARIANTS[name].image_size)
    assert size.parameters == VARIANTS[name].parameters == PARAMETERS[name]
    assert size.multiply_adds == summary.MULTIPLY_ADDS[name]
    if name in MULTIPLY_ADDS:
        digits = len(str(MULTIPLY_ADDS[name]).partition(".")[2])
        assert round(size.multiply_adds / 1e9, digits) == MULTIPLY_ADDS[name]


def test_type_checkers_know_every_name():
    names = {DenseNet: set(), RDNet: set()}
    for name, row in VARIANTS.items():
        names[row.module].add(name)
    assert set(get_args(DenseNetName)) == names[DenseNet] | {FAMILY}
    assert set(get_args(RDNetName)) == names[RDNet]


def test_every_count_belongs_to_a_variant():
    assert set(PARAMETERS) == set(summary.MULTIPLY_ADDS) == set(list_models())


def test_a_count_by_hand():
    """Stem 3x3, one plain layer, classifier, on 4x4 pixels."""
    fields = {"block_sizes": (1,), "growth_rate": 2, "stem_features": 4, "num_classes": 3}
    model = create_model("densenet_40_12", **fields)
    size = summary.count(model, 4)
    convolutions = 9 * 3 * 4 + 9 * 4 * 2
    norms, classifier = 2 * 4 + 2 * 6, 6 * 3
    assert size.parameters == convolutions + norms + classifier + 3
    assert size.multiply_adds == 16 * convolutions + classifier


def test_cifar_family():
    model = create_model("densenet_cifar", depth=40, growth_rate=24, bottleneck=False)
    assert model == create_model("densenet_40_12", growth_rate=24)
    assert create_model("densenet_cifar") == create_model("densenet_bc_100_12")
    with pytest.raises(ValueError, match=r"depth is 42; without bottlenecks it must be 4 \+ 3 n"):
        create_model("densenet_cifar", depth=42, bottleneck=False)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("densenet112", {}, "There is no model 'densenet112'. Did you mean .*densenet121"),
        ("resnet50", {}, "There is no model 'resnet50'"),
        ("densenet121", {"growthrate": 3}, "'growthrate'. Did you mean growth_rate"),
        ("rdnet_tiny", {"drop_path": 0.1}, "'drop_path'. Did you mean drop_path_rate"),
        ("rdnet_tiny", {"stem": "deep"}, "rdnet_tiny has no field 'stem'"),
        ("densenet_cifar", {"bottlenek": True}, "Did you mean bottleneck"),
    ],
)
def test_unknown_names_and_fields(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **overrides)


def test_overrides_are_fields_of_the_module():
    model = create_model("densenet264d", num_classes=7, dtype=jnp.bfloat16, block_sizes=[1, 2])
    assert (model.num_classes, model.dtype, model.block_sizes) == (7, jnp.bfloat16, (1, 2))
    assert (model.stem, model.growth_rate) == ("deep", 48)
    assert isinstance(model, DenseNet)
    rdnet = create_model("rdnet_small", drop_path_rate=0.0, in_channels=1)
    assert (rdnet.drop_path_rate, rdnet.in_channels, len(rdnet.growth_rates)) == (0.0, 1, 11)
    assert isinstance(rdnet, RDNet)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("densenet121", {"block1": (56, 256), "block4": (7, 1024), "final": (7, 1024)}),
        ("densenetblur121d", {"block1": (56, 256), "block2": (28, 512)}),
        ("densenet_bc_100_12", {"block1": (224, 216), "block3": (56, 342)}),
        ("rdnet_tiny", {"block1": (56, 256), "block3": (14, 600), "final": (7, 1040)}),
    ],
)
def test_features_of_every_block(name, blocks):
    model = create_model(name)
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    stages = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, method="features")[0], x
    )
    assert len(stages) == len(model.block_sizes) + 1
    for block, (size, features) in blocks.items():
        assert stages[block].shape == (2, size, size, features)


@pytest.mark.parametrize("name", ["densenet121", "densenetblur121d", "rdnet_tiny"])
def test_rectangular_images_and_pooled_features(name):
    model = create_model(name, num_classes=0)
    x = jax.ShapeDtypeStruct((1, 97, 130, 3), jnp.float32)
    pooled, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    assert pooled.shape == (1, 1040 if name == "rdnet_tiny" else 1024)
    assert "classifier" not in variables["params"]


def test_input_channels():
    for name, stem in (("densenet121", "conv0"), ("rdnet_tiny", "stem_conv")):
        model = create_model(name, in_channels=5)
        x = jax.ShapeDtypeStruct((1, 64, 64, 5), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        assert variables["params"][stem]["kernel"].shape[2] == 5
        with pytest.raises(ValueError, match=r"takes \[batch, height, width, 5\]"):
            model.init(jax.random.key(0), images(64))


@pytest.mark.parametrize(
    ("name", "smallest"), [("densenet121", 29), ("densenet_40_12", 4), ("rdnet_tiny", 32)]
)
def test_smallest_image(name, smallest):
    """As in PyTorch, where a smaller one fails in a pooling."""
    model = create_model(name)

    def logits_of(size):
        x = jax.ShapeDtypeStruct((1, size, size + 3, 3), jnp.float32)
        return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x)

    assert logits_of(smallest).shape == (1, model.num_classes)
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest}"):
        logits_of(smallest - 1)


def test_unknown_stem():
    with pytest.raises(
        ValueError, match="stem is 'deeper'; it must be one of 'imagenet', 'imagenet_same', 'deep'"
    ):
        create_model("densenet121", stem="deeper").init(jax.random.key(0), images(64))


class TestFrozenStatistics:
    """For fine-tuning: training that takes the running statistics and leaves them as they are."""

    model = create_model("densenet121", **TINY)
    variables = random_variables(model)

    def train(self, **fields):
        def apply(variables, x, key):
            rngs = {"dropout": key}
            model = self.model.clone(**fields)
            return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

        return jax.jit(apply)(self.variables, images(), jax.random.key(1))

    def test_training_is_evaluation(self):
        logits, updates = self.train(freeze_statistics=True)
        evaluated = jax.jit(self.model.apply)(self.variables, images())
        np.testing.assert_allclose(logits, evaluated, rtol=1e-6)
        before, after = jax.tree.leaves(self.variables["batch_stats"]), jax.tree.leaves(updates)
        assert len(before) == len(after)
        assert all(map(np.array_equal, before, after))
        dropped, _ = self.train(freeze_statistics=True, dropout_rate=0.5)
        assert not np.allclose(logits, dropped)

    def test_statistics_move_otherwise(self):
        _, updates = self.train()
        before, after = jax.tree.leaves(self.variables["batch_stats"]), jax.tree.leaves(updates)
        assert not any(map(np.array_equal, before, after))
