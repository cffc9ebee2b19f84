"""The part of a network that a parameter belongs to, for masks in fine-tuning."""

import re
from typing import Any

import jax

_PARTS = (
    (r"^(conv\d+|norm\d+|stem_\w+)$", "stem"),
    (r"^(?:denseblock|transition)(\d+)$", lambda match: f"block{match[1]}"),
    (r"^stage_?(\d+)$", lambda match: f"block{int(match[1]) + 1}"),
    (r"^(norm_final|head_norm)$", "norm"),
    (r"^classifier$", "head"),
)


def part_of(path: str) -> str:
    """Returns the part of a variable: `stem`, `block1`, ..., `norm` (the last one) or `head`.

    A DenseNet's transition belongs to the block before it, an RDNet's to the block after it, as
    timm groups them.

    Args:
      path: `module/.../leaf`, with or without the collection in front.

    Raises:
      ValueError: no DenseNet or RDNet has such a variable.
    """
    module = path.removeprefix("params/").removeprefix("batch_stats/").partition("/")[0]
    for pattern, part in _PARTS:
        if match := re.match(pattern, module):
            return part if isinstance(part, str) else part(match)
    raise ValueError(f"{path!r} belongs to no part of a DenseNet or RDNet.")


def parts(params: Any) -> Any:
    """Returns a tree like `params` with the part of each leaf: labels for `optax.partition`.

    Args:
      params: the collection `params` of a model's variables.
    """

    def part(path, _):
        return part_of("/".join(key.key for key in path))

    return jax.tree_util.tree_map_with_path(part, params)


def mask(params: Any, *names: str) -> Any:
    """Returns a tree like `params`, True where the part is one of `names`.

    `mask(params, "head")` is True for the parameters that train while the backbone is frozen.
    """
    return jax.tree.map(lambda part: part in names, parts(params))
