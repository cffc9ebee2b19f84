"""Colour conversions and colour jitter of one image [H, W, C], on the device."""

import jax
import jax.numpy as jnp

HUE_NEEDS_RGB = "Jitter of hue and saturation needs images with 3 channels"


def to_uint8(image: jax.Array) -> jax.Array:
    """Returns floats rounded and clipped to 0..255, as uint8."""
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def white(image: jax.Array) -> int:
    """Returns the number of a white pixel: 255 for uint8, 1 for floats."""
    return 255 if image.dtype == jnp.uint8 else 1


def grayscale(image: jax.Array) -> jax.Array:
    """Returns the luma [H, W, 1] of an image [H, W, C], in its type, computed as Pillow does.

    Pillow's integer arithmetic: (19595 R + 38470 G + 7471 B + 32768) >> 16. Of images without red,
    green and blue it is the mean of the channels.
    """
    if image.shape[-1] == 1:
        return image
    weights = jnp.array([19595, 38470, 7471], jnp.int32)
    if image.shape[-1] != 3:
        return image.astype(jnp.float32).mean(-1, keepdims=True).astype(image.dtype)
    if image.dtype != jnp.uint8:
        return (image * (weights / 65536)).sum(-1, keepdims=True)
    luma = (image.astype(jnp.int32) * weights).sum(-1, keepdims=True) + 0x8000
    return (luma >> 16).astype(jnp.uint8)


def mean_luma(image: jax.Array) -> jax.Array:
    """Returns the mean luma of an image, of uint8 rounded to a whole number, a float32 scalar."""
    mean = grayscale(image).astype(jnp.float32).mean()
    return jnp.floor(mean + 0.5) if image.dtype == jnp.uint8 else mean


def blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns base + factor (image - base), clipped to the range of the image, in float32.

    Args:
      base: broadcastable to `image`; the result for factor 0.
      image: [H, W, C]; the result for factor 1.
      factor: scalar; values above 1 extrapolate.
    """
    top = white(image)
    base, image = base.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(base + factor * (image - base), 0, top)


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns a float image 0..255 [H, W, 3] with its hue rotated by `shift` full turns."""
    high, low = image.max(-1), image.min(-1)
    chroma = high - low
    safe = jnp.where(chroma == 0, 1, chroma)
    r, g, b = (image[..., i] for i in range(3))
    # Compared with each other, not with `high`: a compiler may compute a pixel twice with different
    # rounding, and then it equals nothing.  Where two channels are nearly equal, so are the hues.
    hue = jnp.where(
        (r >= g) & (r >= b),
        (g - b) / safe,
        jnp.where(g >= b, 2 + (b - r) / safe, 4 + (r - g) / safe),
    )
    hue = hue + 6 * shift

    # HSV -> RGB: each channel is the value minus the chroma times a trapezoid function of the hue,
    # which differs between the channels by its offset alone.
    def channel(offset: int) -> jax.Array:
        k = (offset + hue) % 6
        return high - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], -1)


def jitter(
    key: jax.Array,
    image: jax.Array,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random amounts, in this order.

    The strengths mean what they do in torchvision's ColorJitter; 0 leaves a property unchanged.

    Args:
      key: random key of this image.
      image: uint8 [H, W, C], or float32 from 0 to 1.
      brightness: strength; the factor is uniform in [max(0, 1 - strength), 1 + strength].
      contrast: likewise.
      saturation: likewise; needs C = 3.
      hue: largest rotation of the hue in full turns, from 0 to 0.5; needs C = 3.

    Returns:
      [H, W, C] of the same type.

    Raises:
      ValueError: saturation or hue is on, and the image does not have 3 channels.
    """
    if (saturation or hue) and image.shape[-1] != 3:
        raise ValueError(
            f"{HUE_NEEDS_RGB}; the images have {image.shape[-1]}. Set both strengths to 0."
        )
    keys = jax.random.split(key, 4)
    whole = to_uint8 if image.dtype == jnp.uint8 else lambda floats: floats

    def factor(key: jax.Array, strength: float) -> jax.Array:
        return jax.random.uniform(key, (), minval=max(0, 1 - strength), maxval=1 + strength)

    if brightness:
        image = whole(blend(jnp.zeros_like(image), image, factor(keys[0], brightness)))
    if contrast:
        image = whole(blend(mean_luma(image), image, factor(keys[1], contrast)))
    if saturation:
        image = whole(blend(grayscale(image), image, factor(keys[2], saturation)))
    if hue:
        shift = jax.random.uniform(keys[3], (), minval=-hue, maxval=hue)
        image = whole(shift_hue(image.astype(jnp.float32), shift))
    return image
