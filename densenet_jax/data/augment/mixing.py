"""Random erasing, mixup and CutMix on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

AREA = (0.02, 1 / 3)  # the erased share of the image, and its height / width: Zhong et al., 2017
ASPECT = (0.3, 3.3)


def symmetric_beta(key: jax.Array, alpha: float) -> jax.Array:
    """Returns a draw from Beta(alpha, alpha), one of 4,096 equally likely quantiles.

    A table instead of `jax.random.beta`, whose rejection loop takes seconds to compile.
    """
    count = 4096
    quantiles = betaincinv(alpha, alpha, (np.arange(count) + 0.5) / count)
    return jnp.asarray(quantiles, jnp.float32)[jax.random.randint(key, (), 0, count)]


def rectangle(shape: tuple[int, int], centre: jax.Array, size: jax.Array) -> jax.Array:
    """Returns the mask [H, W] of a rectangle, cut at the image's edges.

    Args:
      shape: H, W.
      centre: (y, x) in pixels.
      size: (height, width) in pixels.
    """
    start = jnp.round(centre - size / 2)
    stop = start + jnp.round(size)
    y, x = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None]
    return (y >= start[0]) & (y < stop[0]) & (x >= start[1]) & (x < stop[1])


def random_erase(
    key: jax.Array, image: jax.Array, probability: float, fill: Sequence[float]
) -> jax.Array:
    """Paints a random rectangle of an image [H, W, C] in the colour `fill`, with a probability."""
    whether, area_key, aspect_key, place = jax.random.split(key, 4)
    height, width = image.shape[:2]
    area = jax.random.uniform(area_key, (), minval=AREA[0], maxval=AREA[1]) * height * width
    log_aspect = jax.random.uniform(
        aspect_key, (), minval=jnp.log(ASPECT[0]), maxval=jnp.log(ASPECT[1])
    )
    side = jnp.sqrt(jnp.array([area * jnp.exp(log_aspect), area / jnp.exp(log_aspect)]))
    limit = jnp.array([height, width], jnp.float32)
    size = jnp.minimum(jnp.round(side), limit)
    centre = size / 2 + jnp.floor(jax.random.uniform(place, (2,)) * (limit - size + 1))
    erased = rectangle((height, width), centre, size) & jax.random.bernoulli(whether, probability)
    colour = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), image.shape[-1:])
    return jnp.where(erased[..., None], jnp.round(colour).astype(image.dtype), image)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes every example with the one before it in the batch (the first with the last).

    Args:
      images: uint8 [B, H, W, C].
      targets: float32 [B, classes].
      mixup: alpha of Beta(alpha, alpha) for the share of an image in a weighted mean (Zhang et al.,
        2018); 0: off.
      cutmix: the same for the share outside a pasted rectangle (Yun et al., 2019); 0: off.
      probability: share of the examples that are mixed.

    Returns:
      images and targets of the same shapes; the targets hold each class's share.
    """
    height, width = images.shape[1:3]

    def one(key, image, other, target, other_target):
        whether, which, mixup_key, cutmix_key, place = jax.random.split(key, 5)
        use_cutmix = jax.random.bernoulli(which, 0.5) if mixup else jnp.bool_(True)
        mixed, share = image, jnp.float32(1)
        if mixup:
            share = symmetric_beta(mixup_key, mixup)
            sum_ = share * image.astype(jnp.float32) + (1 - share) * other.astype(jnp.float32)
            mixed = jnp.round(sum_).astype(image.dtype)
        if cutmix:
            side = jnp.sqrt(1 - symmetric_beta(cutmix_key, cutmix))
            limit = jnp.array([height, width], jnp.float32)
            pasted = rectangle(
                (height, width), jax.random.uniform(place, (2,)) * limit, side * limit
            )
            cut = jnp.where(pasted[..., None], other, image)
            # The rectangle may reach over the edge: the share is what is really left.
            mixed = jnp.where(use_cutmix, cut, mixed)
            share = jnp.where(use_cutmix, 1 - pasted.mean(dtype=jnp.float32), share)
        mixes = jax.random.bernoulli(whether, probability)
        share = jnp.where(mixes, share, 1.0)
        mixed = jnp.where(mixes, mixed, image)
        return mixed, share * target + (1 - share) * other_target

    keys = jax.random.split(key, len(images))
    # A roll by one moves one example between neighbouring devices, where a shuffle moves them all.
    others, other_targets = jnp.roll(images, 1, axis=0), jnp.roll(targets, 1, axis=0)
    return jax.vmap(one)(keys, images, others, targets, other_targets)
