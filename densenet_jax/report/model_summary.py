"""A model's stages: output, parameters, multiply-adds; and what training keeps in memory."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

STEM = "stem"


def summarize(
    model: nn.Module, image_shape: tuple[int, int, int], batch_size: int = 1
) -> dict[str, Any]:
    """Returns what a model is made of; nothing is computed, only shapes are followed.

    Args:
      image_shape: (height, width, channels).
      batch_size: examples in a training step, for the estimate of memory.

    Returns:
      "stages": a list of {"name", "layers", "shape", "parameters", "macs"} in order (shape: of the
      stage's feature maps or logits, None where it is not known);
      "parameters", "macs": their sums; "published_macs": with transitions that convolve before they
      pool, as everybody else counts them; "weights_bytes", "activations_bytes": see `memory`.
    """
    if "implementation" in model.__dataclass_fields__:
        model = model.clone(implementation="plain")  # fused kernels hide their products
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    program = jax.make_jaxpr(model.apply)(variables, images)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, images)
    macs, shapes = {}, {}
    for stage, operation in products(program.jaxpr):
        macs[stage] = macs.get(stage, 0) + multiply_adds(operation)
        shapes[stage] = list(operation.outvars[0].aval.shape[1:])
    for block, array in maps.items():
        for name in (f"dense{block}", f"stage{int(block[5:] or 1) - 1}"):
            if name in macs and block != "final":
                shapes[name] = list(array.shape[1:])
    stages = [
        {
            "name": name,
            "layers": _layers(params),
            "shape": shapes.get(name),
            "parameters": _size(params),
            "macs": macs.get(name, 0),
        }
        for name, params in _by_stage(variables["params"], list(macs))
    ]
    total = sum(macs.values())
    pooled_first = sum(n for name, n in macs.items() if name.startswith("transition"))
    return {
        "stages": stages,
        "parameters": _size(variables["params"]),
        "macs": total,
        "published_macs": total + 3 * pooled_first,
        **memory(variables, maps, batch_size),
    }


def memory(variables: Any, maps: dict[str, Any], batch_size: int) -> dict[str, int]:
    """Returns what a training step keeps, in bytes.

    Args:
      maps: shapes of the blocks' outputs for one image.

    Returns:
      "weights_bytes": weights, gradients, momentum and running statistics;
      "activations_bytes": the blocks' buffers, which wait for the backward pass, for one batch.
    """
    weights = 3 * _bytes(variables["params"]) + _bytes(variables.get("batch_stats", {}))
    blocks = [array for name, array in maps.items() if name != "final"]
    return {"weights_bytes": weights, "activations_bytes": batch_size * _bytes(blocks)}


def products(jaxpr: Any, scope: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (stage, operation) for every convolution and matrix product of a traced model."""
    for operation in jaxpr.eqns:
        inner_scope = f"{scope}/{operation.source_info.name_stack}"
        if operation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield _stage_of(inner_scope), operation
        for inner in jax.tree.leaves(list(operation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from products(getattr(inner, "jaxpr", inner), inner_scope)


def multiply_adds(operation: Any) -> int:
    """Returns the multiply-adds of a convolution or a matrix product."""
    left, right = (v.aval.shape for v in operation.invars[:2])
    outputs = math.prod(operation.outvars[0].aval.shape)
    if operation.primitive.name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        return outputs * math.prod(left[i] for i in contracted)
    out_features = right[operation.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(right) // out_features


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _stage_of(scope: str) -> str:
    """Returns the outermost submodule in a name stack such as /DenseNet/DenseNet.features/norm0."""
    parts = [part for part in scope.split("/") if part]
    inside = [part for part in parts[1:] if "." not in part]
    return STEM if "._stem" in scope or not inside or _in_stem(inside[0]) else inside[0]


def _in_stem(name: str) -> bool:
    return name[:-1] in ("conv", "norm") or name.startswith("stem_")


def _by_stage(params: Any, stages: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields (stage, its parameters) in order."""
    yield STEM, {name: p for name, p in params.items() if _in_stem(name)}
    order = {name: i for i, name in enumerate(stages)}
    # The norm before the classifier has no products, and is not among the stages.
    rest = [name for name in params if not _in_stem(name)]
    for name in sorted(rest, key=lambda n: order.get(n, len(order) - 1.5)):
        yield name, params[name]


def _layers(params: Any) -> int:
    """Returns the number of weight layers: kernels of two dimensions or more."""
    return sum(leaf.ndim >= 2 for leaf in jax.tree.leaves(params))


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
