"""Files of every framework give the framework's logits, and convert back bit for bit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.models.variants import create_model
from densenet_jax.weights import conventions, names
from tests.golden import recipe
from tests.random_variables import random_variables

FILES = Path(__file__).parents[1] / "golden" / "weights"
MANIFEST = json.loads((FILES / "manifest.json").read_text(encoding="utf-8"))["files"]
EXPECTED = np.load(FILES / "expected.npz")


def model_of(file: str, **overrides):
    architecture = MANIFEST[file]["architecture"]
    fields = {
        "growth_rate": architecture["growth_rate"],
        "block_sizes": architecture["block_config"],
        "stem_features": architecture["num_init_features"],
        "in_channels": architecture["in_channels"],
        "num_classes": architecture["num_classes"],
        "norm_epsilon": architecture["norm_epsilon"],
    }
    return create_model("densenet121", **{**fields, **overrides})


def tiny(**overrides):
    fields = {"block_sizes": (1, 2, 1, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 3}
    return create_model("densenet121", **{**fields, **overrides})


def tiny_rdnet(**overrides):
    fields = {"block_sizes": (1, 2, 1), "growth_rates": (8, 8, 16), "stem_features": 16}
    fields |= {"halving": (1, 2), "gated_from": 1, "num_classes": 3, "drop_path_rate": 0.0}
    return create_model("rdnet_tiny", **{**fields, **overrides})


def flat(variables):
    return names.traverse_util.flatten_dict(dict(variables), sep="/")


@pytest.fixture(scope="module")
def apply():
    """A function that applies a model, compiled once for each architecture."""
    return jax.jit(lambda model, variables, x: model.apply(variables, x), static_argnums=0)


@pytest.mark.parametrize("file", MANIFEST)
def test_file_gives_the_logits_of_its_framework(file, apply):
    model = model_of(file)
    variables = weights.from_state_dict(model, weights.read(FILES / file))
    if f"{file}/input" in EXPECTED:
        images = EXPECTED[f"{file}/input"]
    else:
        images = recipe.normalized(recipe.images(2, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(apply(model, variables, images), EXPECTED[file], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("torchvision_zip.pth", "torch"),
        ("keras_legacy.h5", "keras"),
        ("keras_applications.keras", "keras"),
        ("mindcv.ckpt", "mindcv"),
    ],
)
def test_file_converts_back_bit_for_bit(file, key):
    model, state_dict = model_of(file), weights.read(FILES / file)
    convention = conventions.CONVENTIONS[key]
    assert names.match(model, state_dict).convention is convention
    back = weights.to_state_dict(model, weights.from_state_dict(model, state_dict), key)
    spelt = {s: x for name, x in state_dict.items() if (s := convention.spell(name))}
    assert back.keys() == spelt.keys()
    for name, tensor in spelt.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].tobytes() == tensor.tobytes(), name


ROUND_TRIPS = [
    (tiny, "torch"),
    (tiny, "keras"),
    (tiny, "mindcv"),
    (lambda: tiny(stem="imagenet_same"), "keras_hub"),
    (tiny, "densenet_jax"),
    (tiny, "nnx"),
    (lambda: tiny(stem="cifar"), "torch_cifar"),
    (lambda: tiny(stem="deep_blur"), "torch"),
    (lambda: tiny(bottleneck_width=0), "torch"),
    (tiny_rdnet, "torch_rdnet"),
    (tiny_rdnet, "densenet_jax"),
    (tiny_rdnet, "nnx"),
]


@pytest.mark.parametrize(("make", "key"), ROUND_TRIPS)
def test_variables_convert_there_and_back_bit_for_bit(make, key):
    model = make()
    variables = random_variables(model)
    state_dict = weights.to_state_dict(model, variables, key)
    back = flat(weights.from_state_dict(model, state_dict))
    assert len(state_dict) == len(back) == len(flat(variables))
    for path, value in flat(variables).items():
        assert back[path].tobytes() == value.tobytes(), path


def test_default_names_are_those_of_timm_and_efficient_densenet_pytorch():
    assert "features.norm5.running_var" in weights.to_state_dict(tiny(), random_variables(tiny()))
    model = tiny(stem="cifar")
    assert "features.norm_final.weight" in weights.to_state_dict(model, random_variables(model))
    state_dict = weights.to_state_dict(tiny_rdnet(), random_variables(tiny_rdnet()))
    assert state_dict["dense_stages.1.2.dense_block0.layers.layers.0.weight"].shape == (8, 1, 7, 7)
    assert state_dict["dense_stages.1.2.dense_block0.layers.layers.5.fc.weight"].shape == (
        8,
        8,
        1,
        1,
    )


def test_names_of_data_parallelism_and_old_pytorch():
    model = tiny()
    variables = random_variables(model)
    old = {
        "module." + name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in weights.to_state_dict(model, variables).items()
    }
    old["module.features.norm0.num_batches_tracked"] = np.int64(7)
    back = flat(weights.from_state_dict(model, old))
    assert all(np.array_equal(back[path], value) for path, value in flat(variables).items())


def test_names_in_the_files_of_rdnet_s_authors():
    model = tiny_rdnet()
    variables = random_variables(model)
    theirs = {
        name.replace("stem.", "stem.stem.", 1) if name.startswith("stem.") else name: tensor
        for name, tensor in weights.to_state_dict(model, variables).items()
    }
    assert "stem.stem.0.weight" in theirs
    back = flat(weights.from_state_dict(model, theirs))
    assert all(np.array_equal(back[path], value) for path, value in flat(variables).items())


def test_half_precision_widens_exactly_and_float64_is_kept_where_the_model_has_it():
    model = tiny()
    state_dict = weights.to_state_dict(model, random_variables(model))
    half = {name: tensor.astype(np.float16) for name, tensor in state_dict.items()}
    back = weights.to_state_dict(model, weights.from_state_dict(model, half))
    assert all(np.array_equal(back[n], x) and back[n].dtype == "f4" for n, x in half.items())


def test_mismatch_lists_both_sides():
    model = tiny()
    state_dict = weights.to_state_dict(model, random_variables(model))
    del state_dict["features.norm0.bias"]
    state_dict["features.extra.weight"] = np.zeros(3, np.float32)
    state_dict["classifier.weight"] = np.zeros((7, 3), np.float32)
    state_dict["features.conv0.weight"] = np.zeros(5, np.float32)
    with pytest.raises(weights.MismatchError) as error:
        weights.from_state_dict(model, state_dict)
    assert error.value.missing == ["features.norm0.bias"]
    assert error.value.left_over == ["features.extra.weight"]
    width = names.shapes(model)["params/classifier/kernel"].shape[0]
    assert error.value.misshapen == {
        "classifier.weight": ((7, 3), (3, width)),
        "features.conv0.weight": ((5,), (8, 3, 7, 7)),
    }
    for name in ("norm0.bias", "extra.weight", "classifier.weight", "conv0.weight", "(7, 3)"):
        assert name in str(error.value)


def test_unknown_names_are_refused():
    with pytest.raises(weights.WeightsError, match=r"resnet\.conv1.*Keras applications"):
        weights.from_state_dict(tiny(), {"resnet.conv1": np.zeros(3)})
    other = weights.to_state_dict(tiny(), random_variables(tiny()))
    with pytest.raises(weights.WeightsError, match="belongs to a RDNet"):
        weights.from_state_dict(tiny_rdnet(), other)


def test_unknown_convention_is_refused():
    for key in ("tensorflow", "keras"):
        with pytest.raises(ValueError, match=f"'{key}' has no names for this model.*torch_rdnet"):
            weights.to_state_dict(tiny_rdnet(), {}, key)


def test_gradients_can_be_converted():
    model = tiny()
    gradients = random_variables(model)["params"]
    state_dict = weights.to_state_dict(model, {"params": gradients})
    assert "classifier.bias" in state_dict
    assert not any("running" in name for name in state_dict)
