"""Random erasing, mixup and CutMix on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

# Ranges of random erasing (Zhong et al., 2017): share of the image's area, and height / width.
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 3.3)


def symmetric_beta(key: jax.Array, alpha: float) -> jax.Array:
    """Returns a sample from Beta(alpha, alpha), a float32 scalar.

    The sample is one of 4,096 equally likely quantiles from a table: the rejection loop of
    `jax.random.beta` takes seconds to compile.
    """
    count = 4096
    quantiles = betaincinv(alpha, alpha, (np.arange(count) + 0.5) / count)
    return jnp.asarray(quantiles, jnp.float32)[jax.random.randint(key, (), 0, count)]


def rectangle(shape: tuple[int, int], centre: jax.Array, size: jax.Array) -> jax.Array:
    """Returns the mask of a rectangle, clipped at the edges of the image: bool [H, W].

    Args:
      shape: (H, W) of the image.
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
    """Paints a random rectangle of an image in one colour, with a given probability.

    Random erasing (Zhong et al., 2017). The rectangle lies inside the image; its area is uniform in
    `AREA`, and the logarithm of its height / width is uniform in that of `ASPECT`.

    Args:
      key: random key of this image.
      image: uint8 [H, W, C], or float32 from 0 to 1.
      probability: that a rectangle is painted.
      fill: colour from 0 to 255, one value or one per channel.

    Returns:
      [H, W, C] of the same type.
    """
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
    colour = jnp.round(colour) if image.dtype == jnp.uint8 else colour / 255
    return jnp.where(erased[..., None], colour.astype(image.dtype), image)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the previous one in the batch (the first with the last).

    At least one of `mixup` and `cutmix` must be on. If both are, each example uses either with
    probability 1/2.

    Args:
      key: random key of this batch.
      images: uint8 [B, H, W, C], or float32 from 0 to 1.
      targets: float32 [B, classes].
      mixup: alpha of mixup (Zhang et al., 2018), whose weight of the example's own image is drawn
        from Beta(alpha, alpha); 0: off.
      cutmix: alpha of CutMix (Yun et al., 2019), whose share of the image outside the pasted
        rectangle is drawn from Beta(alpha, alpha); 0: off.
      probability: that an example is mixed.

    Returns:
      (images of the same type, targets float32 [B, classes]); the targets are mixed by the
      shares of the images.
    """
    height, width = images.shape[1:3]

    def mix_one(
        key: jax.Array,
        image: jax.Array,
        other: jax.Array,
        target: jax.Array,
        other_target: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        whether, which, mixup_key, cutmix_key, place = jax.random.split(key, 5)
        use_cutmix = jax.random.bernoulli(which, 0.5) if mixup else jnp.bool_(True)
        mixed, share = image, jnp.float32(1)
        if mixup:
            share = symmetric_beta(mixup_key, mixup)
            mean = share * image.astype(jnp.float32) + (1 - share) * other.astype(jnp.float32)
            mixed = jnp.round(mean).astype(image.dtype) if image.dtype == jnp.uint8 else mean
        if cutmix:
            side = jnp.sqrt(1 - symmetric_beta(cutmix_key, cutmix))
            limit = jnp.array([height, width], jnp.float32)
            pasted = rectangle(
                (height, width), jax.random.uniform(place, (2,)) * limit, side * limit
            )
            cut = jnp.where(pasted[..., None], other, image)
            # The rectangle may reach beyond the edge, so the share is counted, not drawn.
            mixed = jnp.where(use_cutmix, cut, mixed)
            share = jnp.where(use_cutmix, 1 - pasted.mean(dtype=jnp.float32), share)
        mixes = jax.random.bernoulli(whether, probability)
        share = jnp.where(mixes, share, 1.0)
        mixed = jnp.where(mixes, mixed, image)
        return mixed, share * target + (1 - share) * other_target

    keys = jax.random.split(key, len(images))
    # Rolling by one moves one example between neighbouring devices; a shuffle would move them all.
    others, other_targets = jnp.roll(images, 1, axis=0), jnp.roll(targets, 1, axis=0)
    return jax.vmap(mix_one)(keys, images, others, targets, other_targets)
