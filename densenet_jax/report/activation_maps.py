"""Where in an image a class was seen: class activation maps, Grad-CAM, occlusion.

All are pure functions of (model, variables, images, classes), compiled once for each model and
shape.  Images are normalised, [B, H, W, C]; classes are integers [B].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.models.densenet import DenseNet


def class_map(final: jax.Array, kernel: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns what each position adds to the logits of `classes`, [B, h, w].

    Args:
      final: the feature maps that are averaged and classified, [B, h, w, C].
      kernel: of the classifier, [C, num_classes].
      classes: [B].
    """
    chosen = kernel[:, classes].astype(jnp.float32)
    return jnp.einsum("bhwc,cb->bhw", final.astype(jnp.float32), chosen)


@functools.partial(jax.jit, static_argnames=("model",))
def cam(model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns class activation maps (Zhou et al., 2016), [B, h, w].

    They are exact for DenseNet, whose head is linear in the averaged feature maps: the mean of a
    map plus the classifier's bias is the logit.

    Raises:
      ValueError: the model has no such head.
    """
    if not has_linear_head(model):
        raise ValueError(
            f"{type(model).__name__} with {model.num_classes} classes has no exact class "
            "activation map, which takes a classifier right after the average; use grad_cam."
        )
    final = model.apply(variables, images, method="features")["final"]
    return class_map(final, variables["params"]["classifier"]["kernel"], classes)


def has_linear_head(model: nn.Module) -> bool:
    """Returns whether a model averages its last feature maps and classifies them, no more."""
    averages = isinstance(model, DenseNet) and model.global_pool == "avg"
    return averages and model.num_classes > 0


@functools.partial(jax.jit, static_argnames=("model", "block"))
def grad_cam(
    model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array, block: str
) -> jax.Array:
    """Returns Grad-CAM (Selvaraju et al., 2017) of a block's output, [B, h, w], not negative.

    Args:
      block: a key of `features`: "block1", "block2", ..., "final".

    Raises:
      ValueError: the model has no such block.
    """
    stages = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, images)
    if block not in stages:
        raise ValueError(f"There is no block {block!r}; there are {', '.join(stages)}.")

    def logits_and_maps(change):
        maps = []
        with nn.intercept_methods(_changing(_module_of(model, block), change, maps)):
            logits = model.apply(variables, images).astype(jnp.float32)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), maps[0]

    # The gradient for a change of zero, added to the maps, is the gradient for the maps.
    change = jnp.zeros(stages[block].shape, stages[block].dtype)
    gradient, maps = jax.grad(logits_and_maps, has_aux=True)(change)
    weights = gradient.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), weights))


def _module_of(model: nn.Module, block: str) -> str:
    """Returns the name of the submodule whose output `features` calls `block`."""
    last = len(model.block_sizes)
    if isinstance(model, DenseNet):
        return "norm_final" if block == "final" else f"dense{block}"
    number = last if block == "final" else int(block.removeprefix("block"))
    return f"stage{number - 1}"


def _changing(name: str, change: jax.Array, maps: list):
    """Returns a Flax interceptor that keeps a submodule's output and adds `change` to it."""

    def intercept(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.path != (name,) or context.method_name != "__call__":
            return result
        if isinstance(result, tuple):  # the feature maps and their moments
            maps.append(result[0])
            return result[0] + change, *result[1:]
        maps.append(result)
        return result + change

    return intercept


@functools.partial(jax.jit, static_argnames=("model", "patch", "stride"))
def occlusion(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    classes: jax.Array,
    patch: int,
    stride: int,
) -> jax.Array:
    """Returns how much the class's probability falls where a patch covers the image, [B, H, W].

    The check on the other maps that trusts no gradient (Zeiler and Fergus, 2014).  A pixel has the
    mean over the patches that cover it.

    Args:
      patch: side of the grey square (zeros in normalised images), in pixels.
      stride: distance between two of its places; one row and column more end at the border.
    """
    height, width = images.shape[1:3]
    places = jnp.stack(
        jnp.meshgrid(_starts(height, patch, stride), _starts(width, patch, stride), indexing="ij"),
        axis=-1,
    ).reshape(-1, 2)

    def covered(place):
        rows = jnp.abs(jnp.arange(height) - place[0] - (patch - 1) / 2) < patch / 2
        columns = jnp.abs(jnp.arange(width) - place[1] - (patch - 1) / 2) < patch / 2
        return rows[:, None] & columns

    def probability(images):
        chances = jax.nn.softmax(model.apply(variables, images).astype(jnp.float32))
        return jnp.take_along_axis(chances, classes[:, None], axis=1)[:, 0]

    whole = probability(images)

    def add(total, place):
        mask = covered(place)
        fall = whole - probability(jnp.where(mask[..., None], 0, images))
        falls, counts = total
        return (falls + fall[:, None, None] * mask, counts + mask), None

    start = jnp.zeros(images.shape[:3]), jnp.zeros((height, width))
    (falls, counts), _ = jax.lax.scan(add, start, places)
    return falls / jnp.maximum(counts, 1)


def _starts(length: int, patch: int, stride: int) -> jax.Array:
    last = max(length - patch, 0)
    return jnp.array([*range(0, last, stride), last])
