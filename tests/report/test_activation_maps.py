"""Class activation maps, Grad-CAM and occlusion against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from densenet_jax import create_model
from densenet_jax.report.activation_maps import cam, grad_cam, occlusion

from .conftest import random_variables

CLASSES = np.array([0, 2, 1])


def test_the_mean_of_a_map_and_the_bias_are_the_logit(tiny, images):
    model, variables = tiny
    maps = cam(model, variables, images, CLASSES)
    logits = jax.jit(model.apply)(variables, images)
    assert maps.shape == (3, 8, 8)
    bias = variables["params"]["classifier"]["bias"][CLASSES]
    expected = logits[np.arange(3), CLASSES]
    np.testing.assert_allclose(maps.mean((1, 2)) + bias, expected, rtol=1e-5, atol=1e-5)


def test_grad_cam_of_the_last_maps_is_the_class_activation_map(tiny, images):
    model, variables = tiny
    exact = cam(model, variables, images, CLASSES)
    # The gradient of a mean over 64 positions is a 64th of the classifier's weight.
    found = grad_cam(model, variables, images, CLASSES, "final")
    np.testing.assert_allclose(found, np.maximum(exact, 0) / 64, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_the_gradient_of_a_block(tiny, images):
    model, variables = tiny
    maps = grad_cam(model, variables, images, CLASSES, "block1")
    assert maps.shape == (3, 16, 16)
    # The expected value runs the second block and the head from the first block's output.
    features = jax.jit(functools.partial(model.apply, method="features"))
    output = features(variables, images)["block1"]

    def logit(x):
        def tail(module, x):
            x, _ = module.denseblock2(module.transition1(x, None), None)
            return module.classifier(module.norm_final(x, None).mean((1, 2)))

        return model.apply(variables, x, method=tail)[np.arange(3), CLASSES].sum()

    weights = jax.jit(jax.grad(logit))(output).mean((1, 2))
    expected = jax.nn.relu(jnp.einsum("bhwc,bc->bhw", output, weights))
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", ["block1", "final"])
def test_maps_change_with_the_weights(tiny, images, block):
    model, variables = tiny
    other = random_variables(model, seed=5)
    one, two = (grad_cam(model, v, images, CLASSES, block) for v in (variables, other))
    assert np.abs(one - two).max() > 0.1 * np.abs(one).max()


def test_an_unknown_block_is_named(tiny, images):
    with pytest.raises(ValueError, match="no block 'block9'; the blocks are block1, block2, final"):
        grad_cam(*tiny, images, CLASSES, "block9")


def test_rdnet_has_only_grad_cam():
    fields = {"block_sizes": (1, 1), "growth_rates": (8, 8), "halving": (1,), "stem_features": 16}
    model = create_model("rdnet_tiny", num_classes=3, in_channels=1, **fields)
    variables = random_variables(model, size=32)
    images = np.ones((3, 32, 32, 1), np.float32)
    images[:, :16] = 0
    assert grad_cam(model, variables, images, CLASSES, "block2").shape == (3, 4, 4)
    with pytest.raises(ValueError, match="RDNet with 3 classes has no exact"):
        cam(model, variables, images, CLASSES)


class Spot(nn.Module):
    """A model that only sees a square of four pixels."""

    @nn.compact
    def __call__(self, images):
        spot = images[:, 8:12, 4:8].mean((1, 2))
        return jnp.concatenate([spot, -spot], axis=1)


def test_occlusion_finds_the_pixels_that_matter():
    images = np.ones((2, 16, 16, 1), np.float32)
    falls = occlusion(Spot(), {}, images, np.array([0, 1]), patch=4, stride=4)
    assert falls.shape == (2, 16, 16)
    whole, grey = np.exp(1) / (np.exp(1) + np.exp(-1)), 0.5
    np.testing.assert_allclose(falls[0, 8:12, 4:8], whole - grey, rtol=1e-5)
    np.testing.assert_allclose(falls[1, 8:12, 4:8], grey - whole, rtol=1e-5)
    outside = np.ones((16, 16), bool)
    outside[8:12, 4:8] = False
    assert np.all(np.asarray(falls)[:, outside] == 0)


def test_occlusion_covers_every_pixel():
    images = np.ones((1, 13, 10, 1), np.float32)
    counts = occlusion(Everything(), {}, images, np.array([0]), patch=4, stride=3)
    assert np.all(np.asarray(counts) > 0)


class Everything(nn.Module):
    @nn.compact
    def __call__(self, images):
        total = images.sum((1, 2)) / 50
        return jnp.concatenate([total, -total], axis=1)
