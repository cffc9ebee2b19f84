"""Masks for fine-tuning."""

import jax
import jax.numpy as jnp
import pytest

from densenet_jax.models.parts import mask, part_of, parts
from densenet_jax.models.variants import create_model


def params_of(name):
    x = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(create_model(name).init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize(
    ("name", "blocks"), [("densenetblur121d", 4), ("densenet_40_12", 3), ("rdnet_tiny", 7)]
)
def test_every_parameter_has_a_part(name, blocks):
    labels = parts(params_of(name))
    found = set(jax.tree.leaves(labels))
    assert found == {"stem", "norm", "head", *(f"block{i + 1}" for i in range(blocks))}
    assert set(jax.tree.leaves(labels["classifier"])) == {"head"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("params/conv0/kernel", "stem"),
        ("norm2/scale", "stem"),
        ("denseblock1/denselayer2/conv1/kernel", "block1"),
        ("batch_stats/transition3/norm/mean", "block3"),
        ("stage0/layer1/gamma", "block1"),
        ("stem_norm/bias", "stem"),
        ("norm_final/scale", "norm"),
        ("head_norm/scale", "norm"),
        ("classifier/bias", "head"),
    ],
)
def test_parts(path, part):
    assert part_of(path) == part


def test_mask_of_the_head_alone():
    params = params_of("densenet121")
    chosen = mask(params, "head")
    assert sum(jax.tree.leaves(chosen)) == 2
    assert all(jax.tree.leaves(chosen["classifier"]))


def test_path_of_something_else():
    with pytest.raises(ValueError, match="'layer4/conv' belongs to no part"):
        part_of("layer4/conv")
