"""What happens to a batch of images inside the step: everything random or arithmetic.

All functions are pure, take images [B, H, W, C] and run on the device.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype) -> jax.Array:
    """Returns uint8 images as (x / 255 - mean) / std, in `dtype`; mean and std are per channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def pad_and_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Pads by `pad` zeros on each side and cuts a random window of the old size from every image."""
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)

    def crop(image, offset):
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def augment(key: jax.Array, images: jax.Array, *, pad: int = 0, flip: bool = False) -> jax.Array:
    """Applies the augmentations that are switched on, in this order: pad and crop, flip."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        images = pad_and_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images
