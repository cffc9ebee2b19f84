"""Test-time augmentation: several views of an image, whose predicted probabilities are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.tasks.task import Task

CROPS = (1, 5)


def cut(images: jax.Array, size: int, crops: int, flip: bool) -> jax.Array:
    """Returns views [V, B, size, size, C] of images [B, H, W, C].

    Args:
      crops: 1: the centre; 5: the corners and the centre (Krizhevsky et al., 2012).
      flip: also their mirror images.
    """
    bottom, right = images.shape[1] - size, images.shape[2] - size
    # The centre is rounded as the host's central crop is (Python's round, as in torchvision).
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
) -> Callable[[dict, jax.Array], jax.Array]:
    """Returns the function that maps variables and uint8 images [B, H, W, C] to logits.

    With one view these are the model's; with several they stand for the mean probabilities.

    Args:
      size: height and width of what the model sees; the images may be larger.
      task: says how views are combined.
    """

    def predict(variables: dict, images: jax.Array) -> jax.Array:
        views = cut(images, size, crops, flip)

        def one(view):
            logits = model.apply(variables, normalize(view))
            return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

        if len(views) == 1:
            return one(views[0])
        # One after another: a batch is as large as it is without, and the network compiles once.
        return task.combine_views(jax.lax.map(one, views))

    return predict
