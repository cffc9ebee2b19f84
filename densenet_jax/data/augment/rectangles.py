"""Crops raw images on the device: cuts rectangles out of squares and resizes them."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

METHODS = {"bilinear": "linear", "bicubic": "cubic"}  # the names of `jax.image`


@functools.partial(jax.jit, static_argnames=("size", "interpolation", "sharding"))
def cut(
    images: jax.Array,
    boxes: jax.Array,
    *,
    size: int,
    interpolation: str,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Returns a rectangle of each image, resized with antialiasing: uint8 [B, size, size, C].

    The edges of the rectangles may lie between pixels. The filters are those of Pillow, which
    `host.resize` uses, and the arithmetic is float32.

    Args:
      images: uint8 [B, H, W, C].
      boxes: top, left, height and width of the rectangles in pixels, float32 [B, 4].
      size: height and width of the result in pixels.
      interpolation: "bicubic" or "bilinear".
      sharding: of the batch, over its first axis; None: left to the compiler.
    """
    shape = (size, size, images.shape[-1])

    def one(image: jax.Array, box: jax.Array) -> jax.Array:
        scale = size / box[2:]
        return jax.image.scale_and_translate(
            image.astype(jnp.float32),
            shape,
            (0, 1),
            scale,
            -box[:2] * scale,
            METHODS[interpolation],
        )

    found = jax.vmap(one)(images, boxes).round().clip(0, 255).astype(jnp.uint8)
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)
