"""What a type checker knows of the public functions; `make lint` checks this file, nobody runs it."""

from typing import Any, assert_type

from flax import linen as nn

import densenet_jax
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet


def types(name: str) -> None:
    assert_type(densenet_jax.create_model("densenet121", num_classes=10), DenseNet)
    assert_type(densenet_jax.create_model("rdnet_tiny"), RDNet)
    assert_type(densenet_jax.create_model(name), DenseNet | RDNet)
    assert_type(densenet_jax.list_models(), list[str])
    assert_type(densenet_jax.load_pretrained("weights.pth"), tuple[nn.Module, Any])
