"""The table of variants, and how a name becomes a model."""

import difflib
from typing import Any

from flax import linen as nn

from densenet_jax.models.densenet import DenseNet


def _imagenet(*block_sizes: int, **fields) -> dict[str, Any]:
    return {"block_sizes": block_sizes, **fields}


def _cifar(depth: int, growth_rate: int, bottleneck: bool, **fields) -> dict[str, Any]:
    """Three equal blocks on 32x32 images (paper, section 4.2)."""
    layer_convolutions = 2 if bottleneck else 1
    layers, remainder = divmod(depth - 4, 3 * layer_convolutions)
    if layers < 1 or remainder:
        raise ValueError(
            f"depth is {depth}; with{'' if bottleneck else 'out'} bottlenecks it must be "
            f"4 + {3 * layer_convolutions} n for some n >= 1."
        )
    return {
        "num_classes": 10,
        "block_sizes": (layers,) * 3,
        "growth_rate": growth_rate,
        "stem": "cifar",
        "stem_features": 2 * growth_rate if bottleneck else 16,
        "bottleneck_width": 4 if bottleneck else 0,
        "compression": 0.5 if bottleneck else 1.0,
        **fields,
    }


# The paper's tables 1 and 2; 264 is in the authors' code.
VARIANTS: dict[str, dict[str, Any]] = {
    "densenet121": _imagenet(6, 12, 24, 16),
    "densenet161": _imagenet(6, 12, 36, 24, growth_rate=48, stem_features=96),
    "densenet169": _imagenet(6, 12, 32, 32),
    "densenet201": _imagenet(6, 12, 48, 32),
    "densenet264": _imagenet(6, 12, 64, 48),
    "densenet_40_12": _cifar(40, 12, bottleneck=False),
    "densenet_100_12": _cifar(100, 12, bottleneck=False),
    "densenet_100_24": _cifar(100, 24, bottleneck=False),
    "densenet_bc_100_12": _cifar(100, 12, bottleneck=True),
    "densenet_bc_190_40": _cifar(190, 40, bottleneck=True),
    "densenet_bc_250_24": _cifar(250, 24, bottleneck=True),
}


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, but for `densenet_cifar`, a family."""
    return list(VARIANTS)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Returns a variant as a Flax Linen module.

    Args:
      name: one of `list_models()`, or `densenet_cifar` with `depth`, `growth_rate` and
        `bottleneck` (default True) for any network of that family.
      **overrides: fields of the module, see `DenseNet`.

    Raises:
      ValueError: an unknown name or field, with the nearest that exists.
    """
    if name == "densenet_cifar":
        family = {"depth": 100, "growth_rate": 12, "bottleneck": True}
        family.update({k: overrides.pop(k) for k in tuple(family) if k in overrides})
        fields = _cifar(**family)
    elif name in VARIANTS:
        fields = VARIANTS[name]
    else:
        names = [*VARIANTS, "densenet_cifar"]
        raise ValueError(f"There is no model {name!r}. {_nearest(name, names)}")
    known = [f for f in DenseNet.__dataclass_fields__ if f not in ("parent", "name")]
    for field in overrides:
        if field not in known:
            raise ValueError(f"{name} has no field {field!r}. {_nearest(field, known)}")
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return DenseNet(**{**fields, **overrides})


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
