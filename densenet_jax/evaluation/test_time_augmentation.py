"""Test-time augmentation: several views of an image, whose predicted probabilities are averaged."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.tasks.task import Task

CROPS = (1, 5)


def cut(images: jax.Array, size: int, crops: int, flip: bool) -> jax.Array:
    """Returns views [V, B, size, size, C] of images [B, H, W, C].

    The first view is the central one; mirror images come last.

    Args:
      images: [B, H, W, C].
      size: height and width of a view.
      crops: 1: the centre; 5: the centre and the four corners (Krizhevsky et al., 2012).
      flip: whether to add the mirror images of all views.
    """
    bottom, right = images.shape[1] - size, images.shape[2] - size
    # The centre is rounded as in `host.center_crop` (Python's round, as in torchvision).
    corners = [(round(bottom / 2), round(right / 2))]
    if crops == 5:
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    views = jnp.stack([images[:, y : y + size, x : x + size] for y, x in corners])
    return jnp.concatenate([views, views[:, :, :, ::-1]]) if flip else views


def predictor(
    model: nn.Module,
    normalize: Callable[[jax.Array], jax.Array],
    size: int,
    task: Task,
    *,
    crops: int = 1,
    flip: bool = False,
) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """Returns the function that maps variables and uint8 images [B, H, W, C] to logits.

    With one view these are the model's logits [B, classes]; with several they are the logits of the
    mean probabilities, see `Task.combine_views`.

    Args:
      model: the network.
      normalize: maps uint8 images [B, H, W, C] to normalised images.
      size: height and width of the images that the model sees; the given images may be larger.
      task: combines the views.
      crops: number of views of each image, see `cut`.
      flip: whether to add mirror images.
    """

    def predict(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        views = cut(images, size, crops, flip)

        def one(view: jax.Array) -> jax.Array:
            logits = cast(jax.Array, model.apply(variables, normalize(view)))
            return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

        if len(views) == 1:
            return one(views[0])
        # One view after another, so that the network compiles once and needs no more memory than
        # for a single view.
        return task.combine_views(jax.lax.map(one, views))

    return predict
