"""Checks of what a model is given: names of choices, and batches of images."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp


def check_name(field: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError for a name that is not among the known ones; the message lists them.

    Args:
      field: of the model, for the message.
      name: its value.
      known: the values that it may have.
    """
    if name not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"{field} is {name!r}; it must be one of {choices}.")


def are_numbers(sizes: Iterable) -> bool:
    """Returns whether no size is a symbol, as in an export for every batch or image size."""
    return all(isinstance(size, int) for size in sizes)


def check_images(images: jax.Array, in_channels: int, smallest: int) -> None:
    """Raises ValueError for a batch that the model cannot take, naming what it expects.

    Args:
      images: to be [B, H, W, in_channels], floating point.
      in_channels: channels that the model was made for.
      smallest: the height and width below which nothing is left after the last halving.
    """
    expected = f"[batch, height, width, {in_channels}]"
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise ValueError(f"images have shape {images.shape}; the model takes {expected}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}; the model takes floating-point images, normalised "
            "with the mean and standard deviation it was trained with."
        )
    if are_numbers(images.shape[1:3]) and min(images.shape[1:3]) < smallest:
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels are too small: this model "
            f"needs at least {smallest}x{smallest}."
        )
