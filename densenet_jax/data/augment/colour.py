"""Colour on the device: conversions and jitter of one uint8 image [H, W, C]."""

import jax
import jax.numpy as jnp

HUE_NEEDS_RGB = "hue and saturation need 3 channels"


def to_uint8(image: jax.Array) -> jax.Array:
    """Rounds and clips floats from 0 to 255."""
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def grayscale(image: jax.Array) -> jax.Array:
    """Returns the luma [H, W, 1] of a uint8 image, in the integer arithmetic of Pillow."""
    if image.shape[-1] == 1:
        return image
    weights = jnp.array([19595, 38470, 7471], jnp.int32)
    luma = (image.astype(jnp.int32) * weights).sum(-1, keepdims=True) + 0x8000
    return (luma >> 16).astype(jnp.uint8)


def mean_luma(image: jax.Array) -> jax.Array:
    """Returns the rounded mean of the luma, a float."""
    return jnp.floor(grayscale(image).astype(jnp.float32).mean() + 0.5)


def blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns base + factor (image - base), clipped to 0..255, in float32."""
    base, image = base.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(base + factor * (image - base), 0, 255)


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue of a float image 0..255 [H, W, 3] by `shift` of the full circle."""
    high, low = image.max(-1), image.min(-1)
    chroma = high - low
    safe = jnp.where(chroma == 0, 1, chroma)
    r, g, b = (image[..., i] for i in range(3))
    hue = jnp.where(
        high == r, (g - b) / safe, jnp.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    hue = hue + 6 * shift

    # Channel n of HSV -> RGB: the value minus the chroma times a trapezoid of the hue.
    def channel(offset):
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

    The first three are multiplied by a factor from [max(0, 1 - strength), 1 + strength]; the hue
    turns by at most `hue` (up to 0.5) of the circle. Zero leaves a property alone.
    """
    if (saturation or hue) and image.shape[-1] != 3:
        raise ValueError(f"{HUE_NEEDS_RGB}; the images have {image.shape[-1]}.")
    keys = jax.random.split(key, 4)

    def factor(key, strength):
        return jax.random.uniform(key, (), minval=max(0, 1 - strength), maxval=1 + strength)

    if brightness:
        image = to_uint8(blend(jnp.zeros_like(image), image, factor(keys[0], brightness)))
    if contrast:
        image = to_uint8(blend(mean_luma(image), image, factor(keys[1], contrast)))
    if saturation:
        image = to_uint8(blend(grayscale(image), image, factor(keys[2], saturation)))
    if hue:
        turn = jax.random.uniform(keys[3], (), minval=-hue, maxval=hue)
        image = to_uint8(shift_hue(image.astype(jnp.float32), turn))
    return image
