"""RandAugment (Cubuk et al., 2019) and TrivialAugment (Müller and Hutter, 2021) on the device.

Under `vmap`, a switch between 14 operations would compute all of them for every image. Instead,
every operation is a setting of the same three steps, which always run: one affine warp, one blend
with a base image, and one lookup table of 256 values per channel. The arithmetic is that of Pillow,
on uint8.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.augment import colour

OPS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
BINS = 31  # strengths are numbered 0 to 30
POLICIES = ("randaugment", "trivialaugment")


def strengths(policy: str, height: int, width: int) -> np.ndarray:
    """Returns the value of each operation of `OPS` at each strength, float32 [14, 31].

    Units: slope for shear, pixels for translation, degrees for rotation, distance of the factor
    from 1 for blends, number of bits kept for posterize, threshold for solarize.

    Args:
      policy: "randaugment" or "trivialaugment", which have different ranges.
      height: of the images in pixels.
      width: of the images in pixels.
    """
    if policy == "randaugment":
        shear, turn, factor, bits = 0.3, 30.0, 0.9, 4
        move_x, move_y = width * 150 / 331, height * 150 / 331
    else:
        shear, turn, factor, bits = 0.99, 135.0, 0.99, 6
        move_x = move_y = 32.0
    steps = np.linspace(0, 1, BINS)
    table = {
        "shear_x": shear * steps,
        "shear_y": shear * steps,
        "translate_x": np.trunc(move_x * steps),
        "translate_y": np.trunc(move_y * steps),
        "rotate": turn * steps,
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor * steps),
        "posterize": 8 - np.round(bits * steps),
        "solarize": 255 * (1 - steps),
    }
    return np.stack([table.get(op, 0 * steps) for op in OPS]).astype(np.float32)


def apply(key: jax.Array, image: jax.Array, policy: str, ops: int, magnitude: int) -> jax.Array:
    """Applies a policy to one image.

    RandAugment applies `ops` operations of strength `magnitude`; TrivialAugment applies one of
    random strength. All operations are equally likely, and those with a direction take either one
    with probability 1/2.

    Args:
      key: random key of this image.
      image: uint8 [H, W, C].
      policy: "randaugment" or "trivialaugment".
      ops: number of operations of RandAugment.
      magnitude: strength of RandAugment, from 0 to 30.

    Returns:
      uint8 [H, W, C].

    Raises:
      ValueError: there is no such policy or strength.
    """
    if policy not in POLICIES:
        raise ValueError(f"There is no policy {policy!r}; use one of {', '.join(POLICIES)}.")
    if not 0 <= magnitude < BINS:
        raise ValueError(f"policy_magnitude is {magnitude}; it must be from 0 to {BINS - 1}.")
    trivial = policy == "trivialaugment"
    table = jnp.asarray(strengths(policy, *image.shape[:2]))

    def apply_one(image: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        which, strength, side = jax.random.split(key, 3)
        op = jax.random.randint(which, (), 0, len(OPS))
        level = jax.random.randint(strength, (), 0, BINS) if trivial else magnitude
        sign = jnp.where(jax.random.bernoulli(side), 1.0, -1.0)
        return operate(image, op, table[op, level], sign), None

    # A scan, so that a second operation does not compile the first one again.
    return jax.lax.scan(apply_one, image, jax.random.split(key, 1 if trivial else ops))[0]


def operate(image: jax.Array, op: jax.Array, value: jax.Array, sign: jax.Array) -> jax.Array:
    """Applies one operation to one image.

    Args:
      image: uint8 [H, W, C].
      op: number of the operation in `OPS`, an integer scalar.
      value: its strength in the units of `strengths`, a float32 scalar.
      sign: 1 or -1, the direction, for the operations that have one.

    Returns:
      uint8 [H, W, C].
    """

    def setting(name: str, on: jax.Array, off: jax.Array | float) -> jax.Array:
        return jnp.where(op == OPS.index(name), on, off)

    signed = sign * value
    image = warp(
        image,
        shear_x=setting("shear_x", signed, 0.0),
        shear_y=setting("shear_y", signed, 0.0),
        move_x=setting("translate_x", signed, 0.0),
        move_y=setting("translate_y", signed, 0.0),
        turn=setting("rotate", signed, 0.0),
    )
    base = setting("brightness", jnp.float32(0), image.astype(jnp.float32))
    base = setting("color", colour.grayscale(image).astype(jnp.float32), base)
    base = setting("contrast", colour.mean_luma(image), base)
    base = setting("sharpness", smooth(image).astype(jnp.float32), base)
    image = colour.blend(base, image, 1 + signed).astype(jnp.uint8)

    levels = jnp.arange(256)
    bits = value.astype(jnp.int32)
    table = levels[None]
    table = setting("posterize", levels[None] & (256 - (1 << (8 - bits))), table)
    table = setting("solarize", jnp.where(levels[None] < value, levels[None], 255 - levels), table)
    table = setting("autocontrast", autocontrast_table(image), table)
    table = setting("equalize", equalize_table(image), table)
    table = jnp.broadcast_to(table, (image.shape[-1], 256)).astype(jnp.uint8)
    return jax.vmap(lambda row, channel: row[channel], (0, -1), -1)(table, image)


def warp(
    image: jax.Array,
    *,
    shear_x: jax.Array,
    shear_y: jax.Array,
    move_x: jax.Array,
    move_y: jax.Array,
    turn: jax.Array,
) -> jax.Array:
    """Shears an image about its top left corner, shifts it, or rotates it about its centre.

    At most one of the arguments may differ from 0. Each pixel of the result is the nearest pixel of
    the image; pixels from outside of it are black.

    Args:
      image: uint8 [H, W, C].
      shear_x, shear_y: slopes, scalars.
      move_x, move_y: shifts in pixels, scalars.
      turn: angle in degrees, a scalar.

    Returns:
      uint8 [H, W, C].
    """
    height, width = image.shape[:2]
    angle = jnp.deg2rad(turn)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    dx, dy = x - width / 2, y - height / 2
    from_x = cos * dx + sin * dy + width / 2 + shear_x * y + move_x
    from_y = cos * dy - sin * dx + height / 2 + shear_y * x + move_y
    column, row = jnp.floor(from_x).astype(int), jnp.floor(from_y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0)


def smooth(image: jax.Array) -> jax.Array:
    """Applies Pillow's SMOOTH filter to an image, uint8 [H, W, C].

    The filter is the weighted mean of 3 x 3 pixels, in which the centre has weight 5 and the others
    have weight 1.
    """
    x = image.astype(jnp.int32)
    height, width = x.shape[:2]
    shifted = [x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    inner = (2 * (sum(shifted) + 4 * shifted[4]) + 13) // 26  # rounded division by 13
    return image.at[1:-1, 1:-1].set(inner.astype(jnp.uint8))  # Pillow leaves the border unchanged


def autocontrast_table(image: jax.Array) -> jax.Array:
    """Returns the table that stretches each channel of an image to the full range, int [C, 256]."""
    low = image.min((0, 1)).astype(jnp.float32)[:, None]
    high = image.max((0, 1)).astype(jnp.float32)[:, None]
    stretched = jnp.floor((jnp.arange(256) - low) * (255 / jnp.maximum(high - low, 1)) + 1e-3)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), jnp.arange(256)).astype(int)


def equalize_table(image: jax.Array) -> jax.Array:
    """Returns the table that flattens the histogram of each channel of an image, int [C, 256]."""

    def table(channel: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (counts.sum() - last) // 255
        before = jnp.cumsum(counts) - counts
        flat = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step == 0, jnp.arange(256), flat)

    return jax.vmap(table, -1)(image)
