"""Maps of the image regions that support a class: class activation maps, Grad-CAM, occlusion.

All are pure functions of (model, variables, images, classes), compiled once for each model and
shape of images.  Variables are {"params": ..., "batch_stats": ...}, images are normalised float32
[B, H, W, C], classes are integers [B].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.models.densenet import DenseNet


def class_map(final: jax.Array, kernel: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns how much each position contributes to the logits of `classes`, [B, h, w].

    Args:
      final: the feature maps that are averaged and classified, [B, h, w, C].
      kernel: of the classifier, [C, num_classes].
      classes: one class for each image, [B].
    """
    chosen = kernel[:, classes].astype(jnp.float32)
    return jnp.einsum("bhwc,cb->bhw", final.astype(jnp.float32), chosen)


@functools.partial(jax.jit, static_argnames=("model",))
def cam(model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns class activation maps (Zhou et al., 2016), [B, h, w].

    They are exact for DenseNet, whose head is linear in the averaged feature maps: the mean of a
    map plus the classifier's bias is the logit.

    Raises:
      ValueError: the model does not classify averaged feature maps with a linear layer.
    """
    if not has_linear_head(model):
        raise ValueError(
            f"{type(model).__name__} with {model.num_classes} classes has no exact class "
            "activation map, because no classifier directly follows an average over positions; use "
            "grad_cam."
        )
    maps: Any = model.apply(variables, images, method="features")
    return class_map(maps["final"], variables["params"]["classifier"]["kernel"], classes)


def has_linear_head(model: nn.Module) -> bool:
    """Returns whether a linear classifier directly follows an average of the last feature maps."""
    averages = isinstance(model, DenseNet) and model.global_pool == "avg"
    return averages and model.num_classes > 0


def of_outputs(
    model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array
) -> jax.Array:
    """Returns `cam` where it is exact, and for other networks `grad_cam` of the last block."""
    if has_linear_head(model):
        return cam(model, variables, images, classes)
    return grad_cam(model, variables, images, classes, "final")


@functools.partial(jax.jit, static_argnames=("model", "block"))
def grad_cam(
    model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array, block: str
) -> jax.Array:
    """Returns Grad-CAM maps (Selvaraju et al., 2017) of a block's output, [B, h, w], 0 or more.

    Args:
      model: a classifier.
      variables: of the model.
      images: normalised, [B, H, W, C].
      classes: the class to explain for each image, [B].
      block: a key of the model's `features`: "block1", "block2", ..., "final".

    Raises:
      ValueError: the model has no such block.
    """
    stages = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, images)
    if block not in stages:
        raise ValueError(f"There is no block {block!r}; the blocks are {', '.join(stages)}.")

    def logit_and_maps(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the sum of the classes' logits, and the block's maps, if `change` is added."""
        maps: list[jax.Array] = []
        with nn.intercept_methods(_changing(_module_of(model, block), change, maps)):
            outputs: Any = model.apply(variables, images)
        logits = outputs.astype(jnp.float32)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), maps[0]

    # The gradient with respect to the maps is that with respect to zeros added to them.
    change = jnp.zeros(stages[block].shape, stages[block].dtype)
    gradient, maps = jax.grad(logit_and_maps, has_aux=True)(change)
    weights = gradient.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), weights))


def _module_of(model: nn.Module, block: str) -> str:
    """Returns the name of the submodule whose output is `features()[block]`."""
    last = len(model.block_sizes)
    if isinstance(model, DenseNet):
        return "norm_final" if block == "final" else f"dense{block}"
    number = last if block == "final" else int(block.removeprefix("block"))
    return f"stage{number - 1}"


def _changing(name: str, change: jax.Array, maps: list[jax.Array]) -> Callable[..., Any]:
    """Returns a Flax interceptor that changes the output of a submodule.

    Args:
      name: of the submodule.
      change: is added to the submodule's feature maps [B, h, w, C].
      maps: the interceptor appends the unchanged maps to this list.
    """

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        result = call(*args, **kwargs)
        if context.module.path != (name,) or context.method_name != "__call__":
            return result
        if isinstance(result, tuple):  # a block returns the feature maps and their moments
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
    """Returns how much the class's probability falls if a pixel is covered, [B, H, W].

    A grey patch moves over the image (Zeiler and Fergus, 2014); each pixel gets the mean fall over
    the patches that cover it.  The method uses no gradients, so it checks those that do.

    Args:
      model: a classifier.
      variables: of the model.
      images: normalised, [B, H, W, C].
      classes: the class to explain for each image, [B].
      patch: side of the grey square (zeros in normalised images), in pixels.
      stride: distance between neighbouring patches in pixels; a last row and column of patches end
        at the image's border.
    """
    height, width = images.shape[1:3]
    places = jnp.stack(
        jnp.meshgrid(_starts(height, patch, stride), _starts(width, patch, stride), indexing="ij"),
        axis=-1,
    ).reshape(-1, 2)

    def covered(place: jax.Array) -> jax.Array:
        """Returns which pixels the patch at (row, column) covers, bool [H, W]."""
        rows = jnp.abs(jnp.arange(height) - place[0] - (patch - 1) / 2) < patch / 2
        columns = jnp.abs(jnp.arange(width) - place[1] - (patch - 1) / 2) < patch / 2
        return rows[:, None] & columns

    def probability(images: jax.Array) -> jax.Array:
        """Returns the probabilities of `classes`, [B]."""
        logits: Any = model.apply(variables, images)
        chances = jax.nn.softmax(logits.astype(jnp.float32))
        return jnp.take_along_axis(chances, classes[:, None], axis=1)[:, 0]

    whole = probability(images)

    def add(total: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[Any, None]:
        """Adds a patch to the sums of falls [B, H, W] and the numbers of patches [H, W]."""
        mask = covered(place)
        fall = whole - probability(jnp.where(mask[..., None], 0, images))
        falls, counts = total
        return (falls + fall[:, None, None] * mask, counts + mask), None

    start = jnp.zeros(images.shape[:3]), jnp.zeros((height, width))
    (falls, counts), _ = jax.lax.scan(add, start, places)
    return falls / jnp.maximum(counts, 1)


def _starts(length: int, patch: int, stride: int) -> jax.Array:
    """Returns the first rows (or columns) of patches along a side of `length` pixels."""
    last = max(length - patch, 0)
    return jnp.array([*range(0, last, stride), last])
