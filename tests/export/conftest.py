"""Bundles of tiny networks of each kind."""

import numpy as np
import pytest

from densenet_jax import create_model, export
from densenet_jax.weights import Preprocessing
from tests.random_variables import random_variables

SMALL = {"block_sizes": (2, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 7}
RDNET = {
    "block_sizes": (1, 1),
    "growth_rates": (8, 16),
    "stem_features": 16,
    "halving": (1,),
    "gated_from": 1,
    "num_classes": 7,
}
# Every stem, with and without bottlenecks and classifier, odd sizes.
NETWORKS = {
    "imagenet": ("densenet121", SMALL, 37),
    "same": ("densenet121", {**SMALL, "stem": "imagenet_same"}, 34),
    "deep": ("densenet264d", SMALL, 32),
    "blur": ("densenetblur121d", SMALL, 32),
    "cifar": ("densenet_bc_100_12", SMALL, 9),
    "plain": ("densenet_40_12", SMALL, 8),
    "features": ("densenet_bc_100_12", {**SMALL, "num_classes": 0}, 8),
    "silu": ("densenet121", {**SMALL, "activation": "silu", "global_pool": "catavgmax"}, 32),
    "gelu": ("densenetblur121d", {**SMALL, "activation": "gelu", "global_pool": "max"}, 32),
    "leaky": (
        "densenet_bc_100_12",
        {**SMALL, "activation": "leaky_relu", "global_pool": "avgmax", "growth_rate": (4, 6)},
        9,
    ),
    "rdnet": ("rdnet_tiny", RDNET, 16),
}


def make_bundle(key: str, **options) -> export.Bundle:
    name, fields, size = NETWORKS[key]
    model = create_model(name, **fields)
    given = Preprocessing(size, 0.875, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    return export.make(model, random_variables(model), given, **options)


def images_of(bundle: export.Bundle, count: int, dtype=np.uint8) -> np.ndarray:
    pixels = np.random.default_rng(count).integers(0, 256, (count, *bundle.image_shape))
    return pixels.astype(dtype) if dtype == np.uint8 else (pixels / 64 - 2).astype(dtype)


@pytest.fixture(scope="session")
def cifar() -> export.Bundle:
    return make_bundle("cifar", origin="a test", licence="mit", results={"top-1": "12.50%"})
