"""The table of variants, and the functions that make a model from a name."""

import difflib
from typing import Any, Literal, NamedTuple, overload

from flax import linen as nn

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.precision import fastest_dtype
from densenet_jax.models.rdnet import RDNet


class Variant(NamedTuple):
    """A row of the table: the module, the fields that differ from its defaults, its size.

    Attributes:
      module: `DenseNet` or `RDNet`.
      fields: of the module.
      parameters: trainable numbers, counted once and for all; a test compares.
      image_size: height and width that the published numbers of the variant belong to.
    """

    module: type[DenseNet] | type[RDNet]
    fields: dict[str, Any]
    parameters: int
    image_size: int


def _imagenet(parameters: int, *block_sizes: int, **fields: Any) -> Variant:
    return Variant(DenseNet, {"block_sizes": block_sizes, **fields}, parameters, 224)


def _cifar_fields(depth: int, growth_rate: int, bottleneck: bool) -> dict[str, Any]:
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
    }


def _cifar(parameters: int, depth: int, growth_rate: int, bottleneck: bool) -> Variant:
    return Variant(DenseNet, _cifar_fields(depth, growth_rate, bottleneck), parameters, 32)


def _rdnet(
    parameters: int,
    stem_features: int,
    *growth_rates: int,
    last_halving: int,
    drop_path_rate: float,
) -> Variant:
    """Blocks of three layers; the resolution halves before the 2nd, the 3rd and one late block."""
    fields = {
        "stem_features": stem_features,
        "growth_rates": growth_rates,
        "block_sizes": (3,) * len(growth_rates),
        "halving": (1, 2, last_halving),
        "drop_path_rate": drop_path_rate,
    }
    return Variant(RDNet, fields, parameters, 224)


_161 = {"growth_rate": 48, "stem_features": 96}

# The paper's tables 1 and 2; 264 is in the authors' code, `d` (deep stem) and `blur` are timm's.
VARIANTS: dict[str, Variant] = {
    "densenet121": _imagenet(7_978_856, 6, 12, 24, 16),
    "densenet161": _imagenet(28_681_000, 6, 12, 36, 24, **_161),
    "densenet169": _imagenet(14_149_480, 6, 12, 32, 32),
    "densenet201": _imagenet(20_013_928, 6, 12, 48, 32),
    "densenet264": _imagenet(33_337_704, 6, 12, 64, 48),
    "densenet264d": _imagenet(72_736_216, 6, 12, 64, 48, stem="deep", **_161),
    "densenetblur121d": _imagenet(7_998_088, 6, 12, 24, 16, stem="deep_blur"),
    "rdnet_tiny": _rdnet(
        23_863_008, 64, 64, 104, *[128] * 4, 224, last_halving=6, drop_path_rate=0.15
    ),
    "rdnet_small": _rdnet(
        50_436_448, 72, 64, *[128] * 8, 240, 240, last_halving=9, drop_path_rate=0.35
    ),
    "rdnet_base": _rdnet(
        87_451_096, 120, 96, 128, *[168] * 7, 336, 336, last_halving=9, drop_path_rate=0.4
    ),
    "rdnet_large": _rdnet(
        186_269_632, 144, 128, 192, *[256] * 8, 360, 360, last_halving=10, drop_path_rate=0.5
    ),
    "densenet_40_12": _cifar(1_019_722, 40, 12, bottleneck=False),
    "densenet_100_12": _cifar(6_979_642, 100, 12, bottleneck=False),
    "densenet_100_24": _cifar(27_249_082, 100, 24, bottleneck=False),
    "densenet_bc_100_12": _cifar(769_162, 100, 12, bottleneck=True),
    "densenet_bc_190_40": _cifar(25_624_430, 190, 40, bottleneck=True),
    "densenet_bc_250_24": _cifar(15_324_406, 250, 24, bottleneck=True),
}
FAMILY = "densenet_cifar"

# For type checkers, which learn from them what `create_model` returns; a test compares.
DenseNetName = Literal[
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "densenet264d",
    "densenetblur121d",
    "densenet_40_12",
    "densenet_100_12",
    "densenet_100_24",
    "densenet_bc_100_12",
    "densenet_bc_190_40",
    "densenet_bc_250_24",
    "densenet_cifar",
]
RDNetName = Literal["rdnet_tiny", "rdnet_small", "rdnet_base", "rdnet_large"]


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, but for `densenet_cifar`, a family."""
    return list(VARIANTS)


@overload
def create_model(variant: DenseNetName, /, **overrides: Any) -> DenseNet: ...


@overload
def create_model(variant: RDNetName, /, **overrides: Any) -> RDNet: ...


@overload
def create_model(variant: str = ..., /, **overrides: Any) -> DenseNet | RDNet: ...


def create_model(variant: str | None = None, /, **overrides: Any) -> DenseNet | RDNet:
    """Returns a variant as a Flax Linen module.

    Args:
      variant: one of `list_models()`, or `densenet_cifar` with `depth`, `growth_rate` and
        `bottleneck` (default 100, 12, True) for any network of that family.
      **overrides: fields of the module, see `DenseNet` and `RDNet`; `name` is that of the module,
        and `dtype="auto"` is the type that this machine's device computes fastest in, see
        `precision.fastest_dtype`.

    Raises:
      ValueError: an unknown name or field, with the nearest that exists.
    """
    name = overrides.pop("name", "") if variant is None else variant
    module: type[DenseNet] | type[RDNet] = DenseNet
    fields: dict[str, Any] = {}
    family: dict[str, Any] = {}
    if name == FAMILY:
        family = {"depth": 100, "growth_rate": 12, "bottleneck": True}
        family.update({k: overrides.pop(k) for k in family if k in overrides})
        fields = _cifar_fields(**family)
    elif name in VARIANTS:
        module, fields, *_ = VARIANTS[name]
    else:
        names = [*VARIANTS, FAMILY]
        raise ValueError(f"There is no model {name!r}. {nearest(name, names)}")
    if module is DenseNet and "growth_rates" in overrides:  # as RDNet calls one for each block
        overrides["growth_rate"] = tuple(overrides.pop("growth_rates"))
    known = [f for f in module.__dataclass_fields__ if f != "parent"]
    for field in overrides:
        if field not in known:
            known += family
            raise ValueError(f"{name} has no field {field!r}. {nearest(field, known)}")
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    if isinstance(overrides.get("dtype"), str) and overrides["dtype"] == "auto":
        overrides["dtype"] = fastest_dtype()
    return module(**{**fields, **overrides})


def identify(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Returns the name and the overrides from which `create_model` makes this model.

    Of several variants the one with the fewest overrides; fields that say how and not what is
    computed (types, implementation) are left out.
    """
    how = ("parent", "name", "dtype", "param_dtype", "implementation")

    def overrides(name: str) -> dict[str, Any]:
        variant = create_model(name)
        fields = [f for f in variant.__dataclass_fields__ if f not in how]
        return {f: getattr(model, f) for f in fields if getattr(model, f) != getattr(variant, f)}

    names = [name for name, row in VARIANTS.items() if row.module is type(model)]
    return min(((name, overrides(name)) for name in names), key=lambda pair: len(pair[1]))


def nearest(name: str, names: list[str]) -> str:
    """Returns a sentence that suggests the nearest of `names`, or lists all of them."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
