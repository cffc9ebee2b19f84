"""What happens to a batch of images inside the step: everything random or arithmetic.

All functions are pure and run on the device. Example i of a batch draws from key i, split from the
step's key, so the outcome does not depend on how the batch is spread over devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.data.augment import colour, mixing, policies

NO_JITTER = (0.0, 0.0, 0.0, 0.0)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype) -> jax.Array:
    """Returns uint8 images as (x / 255 - mean) / std, in `dtype`; mean and std are per channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image [H, W, C] left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_and_crop(key: jax.Array, image: jax.Array, pad: int) -> jax.Array:
    """Pads an image [H, W, C] by `pad` zeros on each side and cuts a random window of its size."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def augment(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array | None = None,
    *,
    flip: bool = False,
    pad: int = 0,
    jitter: Sequence[float] = NO_JITTER,
    policy: str = "",
    policy_ops: int = 2,
    policy_magnitude: int = 9,
    erase: float = 0.0,
    erase_fill: Sequence[float] = (0.0,),
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Applies the augmentations that are switched on, in the order of the arguments.

    Args:
      key: of this step.
      images: uint8 [B, H, W, C].
      targets: float32 [B, C], what the loss compares with, mixed as the images are; None: images
        alone (then nothing can be mixed).
      flip: whether half of the images are mirrored.
      pad: pixels of zeros around the image before a window of the old size is cut; 0: off.
      jitter: strength of brightness, contrast, saturation and hue, as in torchvision's ColorJitter.
      policy: "randaugment", "trivialaugment" or "".
      policy_ops: operations an image, for RandAugment.
      policy_magnitude: strength of RandAugment from 0 to 30.
      erase: probability that a rectangle is painted over.
      erase_fill: its colour, from 0 to 255, one value or one per channel.
      mixup: alpha of mixup's Beta(alpha, alpha); 0: off.
      cutmix: alpha of CutMix's; 0: off. With both on, a fair coin decides for each image.
      mix_probability: share of the images that are mixed at all.

    Returns:
      uint8 images [B, H, W, C]; with `targets`, also these, float32 [B, C].
    """
    image_key, mix_key = jax.random.split(key)

    def one(key, image):
        keys = jax.random.split(key, 5)
        if flip:  # first: after the crop, XLA:CPU takes 1.4 times as long for both
            image = random_flip(keys[1], image)
        if pad:
            image = pad_and_crop(keys[0], image, pad)
        if any(jitter):
            image = colour.jitter(keys[2], image, *jitter)
        if policy:
            image = policies.apply(keys[3], image, policy, policy_ops, policy_magnitude)
        if erase:
            image = mixing.random_erase(keys[4], image, erase, erase_fill)
        return image

    images = jax.vmap(one)(jax.random.split(image_key, len(images)), images)
    if targets is None:
        if mixup or cutmix:
            raise ValueError("mixup and cutmix need targets: augment(key, images, targets, ...).")
        return images
    if mixup or cutmix:
        images, targets = mixing.mix(
            mix_key, images, targets, mixup=mixup, cutmix=cutmix, probability=mix_probability
        )
    return images, targets
