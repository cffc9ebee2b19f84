"""The network of weights is told from their tensors."""

import pytest

from densenet_jax import weights
from densenet_jax.models.variants import create_model
from densenet_jax.weights.infer_variant import from_tensors, network_of
from tests.random_variables import random_variables

SMALL = {"block_sizes": (1, 2), "growth_rate": 4, "stem_features": 8}


@pytest.mark.parametrize("convention", ["torch", "keras", "mindcv", "densenet_jax"])
@pytest.mark.parametrize(
    "fields",
    [
        SMALL,
        {**SMALL, "growth_rate": (4, 6), "compression": 1.0},
        {**SMALL, "bottleneck_width": 0},
        {**SMALL, "bottleneck_width": 2, "in_channels": 1, "num_classes": 0},
    ],
)
def test_fields_of_a_densenet(fields, convention):
    model = create_model("densenet121", **fields)
    name, found = from_tensors(weights.to_state_dict(model, random_variables(model), convention))
    same = {"num_classes": model.num_classes, "in_channels": model.in_channels}
    assert create_model(name, **found, **same) == model


def test_a_prefix_and_other_layers_do_not_matter():
    model = create_model("densenet121", **SMALL)
    theirs = weights.to_state_dict(model, random_variables(model))
    theirs = {f"module.net.{name}": tensor for name, tensor in theirs.items()}
    name, found = from_tensors(theirs)
    assert create_model(name, **found) == model


@pytest.mark.parametrize("name", ["densenet121", "densenetblur121d", "densenet_bc_100_12"])
def test_variants(name, caplog, tmp_path):
    model = create_model(name)
    state_dict = weights.to_state_dict(model, random_variables(model))
    assert from_tensors(state_dict) == (name, {})
    assert ("cannot be told from" in caplog.text) == (name != "densenet121")
    if name == "densenet121":
        weights.write_safetensors(tmp_path / "best.safetensors", state_dict)
        assert network_of(str(tmp_path / "best.safetensors")) == name
        assert network_of(str(tmp_path)) == name


def test_a_tensor_too_few_or_of_another_shape_is_no_network():
    model = create_model("densenet121", **SMALL)
    state_dict = weights.to_state_dict(model, random_variables(model))
    name = "features.denseblock2.denselayer2.conv1.weight"
    assert from_tensors({n: x for n, x in state_dict.items() if n != name}) is None
    assert from_tensors({**state_dict, name: state_dict[name][:, :3]}) is None
    assert from_tensors({}) is None
