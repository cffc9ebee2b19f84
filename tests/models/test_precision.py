"""The type that `dtype="auto"` stands for, by device."""

import types

import jax
import pytest

from densenet_jax.models.precision import fastest_dtype
from densenet_jax.models.variants import create_model

GPUS = {"7.5": "float16", "7.0": "float16", "8.0": "bfloat16", "10.3": "bfloat16"}
GPUS |= {"12.0": "bfloat16", "gfx90a": "bfloat16"}


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        *(("gpu", c, d) for c, d in GPUS.items()),
    ],
)
def test_the_type_suits_the_device(monkeypatch, platform, capability, dtype):
    device = types.SimpleNamespace(platform=platform)
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert fastest_dtype() == dtype
    assert create_model("densenet121", dtype="auto").dtype == dtype
