"""A summary of a model: output shape, parameters and multiply-adds of each stage, and memory."""

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
    """Returns a summary of a model for one image; traces shapes only, without computing.

    Args:
      model: a `DenseNet` or an `RDNet`.
      image_shape: (height, width, channels).
      batch_size: examples in a training step, for the estimate of memory.

    Returns:
      A dict with the keys
      "stages": [{"name", "layers" (number of kernels), "shape" (of the stage's feature maps or
      logits for one image; None if unknown), "parameters", "macs" (multiply-adds)}, ...] in order;
      "parameters", "macs": sums over the stages;
      "published_macs": the sum if transitions convolved before they pool, as in published counts;
      "weights_bytes", "activations_bytes": see `memory`.
    """
    if "implementation" in model.__dataclass_fields__:
        # Matrix products inside fused kernels could not be counted.
        model = model.clone(implementation="plain")
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def is_features(module: nn.Module, method: str) -> bool:
        return module.name is None and method == "features"

    def run(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, capture_intermediates=is_features)

    program, (_, state) = jax.make_jaxpr(run, return_shape=True)(variables, images)
    (maps,) = state["intermediates"]["features"]
    macs: dict[str, int] = {}
    shapes: dict[str, list[int]] = {}
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
    """Returns the memory that a training step keeps, in bytes.

    Args:
      variables: {"params": ..., "batch_stats": ...} as arrays or shapes.
      maps: {block: output for one image} as arrays or shapes.
      batch_size: examples in a step.

    Returns:
      {"weights_bytes": weights, gradients, momentum and running statistics,
      "activations_bytes": the blocks' buffers of a batch, which are kept for the backward pass}.
    """
    weights = 3 * _bytes(variables["params"]) + _bytes(variables.get("batch_stats", {}))
    blocks = [array for name, array in maps.items() if name != "final"]
    return {"weights_bytes": weights, "activations_bytes": batch_size * _bytes(blocks)}


def products(jaxpr: Any, scope: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (stage, equation) for every convolution and matrix product of a traced model.

    Args:
      jaxpr: the traced model.
      scope: name stack of the equation that contains `jaxpr`; "" for a whole model.
    """
    for operation in jaxpr.eqns:
        inner_scope = f"{scope}/{operation.source_info.name_stack}"
        if operation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield _stage_of(inner_scope), operation
        for inner in jax.tree.leaves(list(operation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from products(getattr(inner, "jaxpr", inner), inner_scope)


def multiply_adds(operation: Any) -> int:
    """Returns the multiply-adds of a jaxpr's equation, a convolution or a matrix product."""
    left, right = (v.aval.shape for v in operation.invars[:2])
    outputs = math.prod(operation.outvars[0].aval.shape)
    if operation.primitive.name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        return outputs * math.prod(left[i] for i in contracted)
    out_features = right[operation.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(right) // out_features


def _is_program(value: Any) -> bool:
    """Returns whether an equation's parameter is a jaxpr, such as the body of a loop."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _stage_of(scope: str) -> str:
    """Returns the outermost submodule in a name stack such as /DenseNet/DenseNet.features/norm0."""
    parts = [part for part in scope.split("/") if part]
    inside = [part for part in parts[1:] if "." not in part]
    return STEM if "._stem" in scope or not inside or _in_stem(inside[0]) else inside[0]


def _in_stem(name: str) -> bool:
    return name[:-1] in ("conv", "norm") or name.startswith("stem_")


def _by_stage(params: Any, stages: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields (stage, its parameters) in the order of the stages."""
    yield STEM, {name: p for name, p in params.items() if _in_stem(name)}
    order = {name: i for i, name in enumerate(stages)}
    # The norm before the classifier has no products and is not among the stages: it is inserted
    # before the last one.
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
