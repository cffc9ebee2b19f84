"""Random augmentation, mixing and normalisation of a batch of images, inside the training step.

All functions are pure and run on the device. Image i of a batch uses key i split from the step's
key, so the result does not depend on how the batch is spread over devices.

`AUGMENTATIONS` is the table of the augmentations of a single image. A new one is an entry there, a
function of (key, image, options), and a field of `Options`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from densenet_jax.data.augment import colour, mixing, policies

EIGHT_BITS = (0.0, 255.0)  # the numbers that become 0 and 1 in images of 8 bits
NO_JITTER = (0.0, 0.0, 0.0, 0.0)
SPLIT_KEYS = 5  # an image's key is split into so many; the numbers from here on are folded into it


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the augmentations of a single image; by default all are off.

    Attributes:
      flip: whether to mirror half of the images.
      pad: width in pixels of the border of zeros from which a random [H, W] is cut; 0: off.
      jitter: strengths of brightness, contrast, saturation and hue, as in torchvision's
        ColorJitter.
      policy: "randaugment", "trivialaugment" or "" (off).
      policy_ops: number of operations per image of RandAugment.
      policy_magnitude: strength of RandAugment, from 0 to 30.
      erase: probability of random erasing, which paints over a rectangle.
      erase_fill: colour of that rectangle, from 0 to 255: one value, or one per channel.
    """

    flip: bool = False
    pad: int = 0
    jitter: Sequence[float] = NO_JITTER
    policy: str = ""
    policy_ops: int = 2
    policy_magnitude: int = 9
    erase: float = 0.0
    erase_fill: Sequence[float] = (0.0,)


class Augmentation(NamedTuple):
    """An augmentation of a single image.

    Attributes:
      option: name of the field of `Options` that switches it on: anything but False, 0, "" or a
        sequence of zeros.
      key: number of its random key, which no other entry has. A changed number changes the images
        of every run that uses the augmentation.
      apply: function of (key, image [H, W, C], options) that returns [H, W, C] of the same type,
        uint8 or float32 from 0 to 1.
    """

    option: str
    key: int
    apply: Callable[[jax.Array, jax.Array, Options], jax.Array]


def scale(images: jax.Array, ends: tuple[float, float]) -> jax.Array:
    """Returns images as float32 in which 0 and 1 are the two numbers `ends`."""
    low, high = ends
    return (images.astype(jnp.float32) - low) / (high - low)


def normalize(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
    ends: tuple[float, float] = EIGHT_BITS,
) -> jax.Array:
    """Returns images [..., C] as ((x - low) / (high - low) - mean) / std in `dtype`.

    Args:
      images: [..., C], of any type.
      mean: one value per channel, for images from 0 to 1.
      std: standard deviation, one value per channel, for images from 0 to 1.
      dtype: of the result; the arithmetic is float32.
      ends: (low, high), the numbers of the images that become 0 and 1 before mean and std.
    """
    low, high = ends
    gain = 1 / ((high - low) * jnp.asarray(std, jnp.float32))
    if low:
        images = images.astype(jnp.float32) - low
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * gain - shift).astype(dtype)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image [H, W, C] left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_and_crop(key: jax.Array, image: jax.Array, pad: int) -> jax.Array:
    """Pads an image [H, W, C] with `pad` zeros on each side and returns a random [H, W, C] of it.

    The usual augmentation of CIFAR: Lee et al., 2015 (Deeply-Supervised Nets), He et al., 2016.
    """
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def _flip(key: jax.Array, image: jax.Array, options: Options) -> jax.Array:
    return random_flip(key, image)


def _pad(key: jax.Array, image: jax.Array, options: Options) -> jax.Array:
    return pad_and_crop(key, image, options.pad)


def _jitter(key: jax.Array, image: jax.Array, options: Options) -> jax.Array:
    return colour.jitter(key, image, *options.jitter)


def _policy(key: jax.Array, image: jax.Array, options: Options) -> jax.Array:
    return policies.apply(key, image, options.policy, options.policy_ops, options.policy_magnitude)


def _erase(key: jax.Array, image: jax.Array, options: Options) -> jax.Array:
    return mixing.random_erase(key, image, options.erase, options.erase_fill)


AUGMENTATIONS = (  # in the order in which they are applied
    # The flip comes first: after the crop, XLA:CPU takes 1.4 times as long for both.
    Augmentation("flip", key=1, apply=_flip),
    Augmentation("pad", key=0, apply=_pad),
    Augmentation("jitter", key=2, apply=_jitter),
    Augmentation("policy", key=3, apply=_policy),
    Augmentation("erase", key=4, apply=_erase),
)


def augment(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array | None = None,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    **options: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Applies the augmentations that are switched on: `AUGMENTATIONS` in order, then mixing.

    Args:
      key: random key of this step.
      images: uint8 [B, H, W, C], or float32 in which 0 is black and 1 white.
      targets: float32 [B, classes], the targets of the loss, which are mixed as the images are.
        None: only images are returned, and mixup and CutMix must be off.
      mixup: alpha of mixup's Beta(alpha, alpha); 0: off.
      cutmix: alpha of CutMix's Beta(alpha, alpha); 0: off. If both are on, each image uses either
        with probability 1/2.
      mix_probability: probability that an image is mixed.
      **options: fields of `Options`.

    Returns:
      images of the same type; with `targets`, the pair (images, targets float32 [B, classes]).

    Raises:
      ValueError: the policy or its strength is unknown, jitter of saturation or hue is on and C is
        not 3, or mixup or CutMix is on and there are no targets.
    """
    image_key, mix_key = jax.random.split(key)
    given = Options(**options)
    active = [entry for entry in AUGMENTATIONS if _is_on(getattr(given, entry.option))]

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, SPLIT_KEYS)
        for _, number, apply in active:
            # The split is as old as the first five augmentations; another length could change
            # their keys, and with them the images of existing runs.
            own = keys[number] if number < SPLIT_KEYS else jax.random.fold_in(key, number)
            image = apply(own, image, given)
        return image

    images = jax.vmap(augment_one)(jax.random.split(image_key, len(images)), images)
    if targets is None:
        if mixup or cutmix:
            raise ValueError("mixup and cutmix need targets: augment(key, images, targets, ...).")
        return images
    if mixup or cutmix:
        images, targets = mixing.mix(
            mix_key, images, targets, mixup=mixup, cutmix=cutmix, probability=mix_probability
        )
    return images, targets


def _is_on(value: Any) -> bool:
    """Returns whether an option, a scalar, string or sequence of numbers, switches something on."""
    return bool(value) if isinstance(value, str) else bool(np.any(value))
