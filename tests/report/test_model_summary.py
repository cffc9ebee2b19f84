"""Sizes of models against published numbers."""

import pytest

from densenet_jax import create_model
from densenet_jax.models.variants import VARIANTS
from densenet_jax.report.model_summary import summarize


def test_densenet121():
    found = summarize(create_model("densenet121"), (224, 224, 3), batch_size=2)
    assert found["parameters"] == VARIANTS["densenet121"].parameters
    assert found["published_macs"] == 2_834_161_664  # 2.83 G, as torchvision counts
    # Each transition saves three quarters of 56 * 56 * 256 * 128 multiply-adds.
    assert found["macs"] == 2_834_161_664 - 3 * 3 * 56 * 56 * 256 * 128 // 4
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == [
        "stem",
        *(f"{kind}{i}" for i in (1, 2, 3) for kind in ("denseblock", "transition")),
        "denseblock4",
        "norm_final",
        "classifier",
    ]
    assert stages["denseblock4"]["shape"] == [7, 7, 1024]
    assert stages["classifier"]["parameters"] == 1_025_000
    assert stages["denseblock1"]["layers"] == 12
    blocks = 56 * 56 * 256 + 28 * 28 * 512 + 14 * 14 * 1024 + 7 * 7 * 1024
    assert found["activations_bytes"] == 2 * 4 * blocks


@pytest.mark.parametrize("name", ["densenet_40_12", "rdnet_tiny"])
def test_every_parameter_belongs_to_a_stage(name):
    model = create_model(name)
    size = VARIANTS[name].image_size
    found = summarize(model, (size, size, 3))
    assert sum(stage["parameters"] for stage in found["stages"]) == VARIANTS[name].parameters
    assert sum(stage["macs"] for stage in found["stages"]) == found["macs"]
