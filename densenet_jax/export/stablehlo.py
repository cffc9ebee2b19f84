"""StableHLO export: one program with the weights for CPU, CUDA and TPU and any batch size."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from densenet_jax.data.augment import device
from densenet_jax.export.bundle import Bundle

PLATFORMS = ("cpu", "cuda", "tpu")
SMALLEST = 32  # pixels; see `smallest`


def program(
    bundle: Bundle, preprocess: bool
) -> tuple[Callable[[jax.Array], jax.Array], type[np.generic]]:
    """Returns the function that is exported and the element type of its images.

    Args:
      bundle: the model; without a classifier, the function returns pooled features.
      preprocess: the function maps pixels to probabilities or numbers; False: it maps normalised
        float32 images to logits.

    Returns:
      (function of images [B, H, W, C] to outputs [B, N], the type of its images).
    """
    model, variables, given = bundle.model, bundle.variables, bundle.preprocessing

    def run(images: jax.Array) -> jax.Array:
        if not preprocess:
            return cast(jax.Array, model.apply(variables, images))
        images = device.normalize(images, given.mean, given.std, jnp.float32, given.ends)
        scores = cast(jax.Array, model.apply(variables, images))
        return bundle.outputs(scores) if model.num_classes else scores

    return run, np.dtype(given.dtype if preprocess else np.float32).type


def to_stablehlo(
    bundle: Bundle, preprocess: bool = False, *, dynamic_size: bool = False
) -> export.Exported:
    """Returns the exported program [B, H, W, C] -> [B, N] with a symbolic batch size B.

    Args:
      bundle, preprocess: see `program`.
      dynamic_size: height and width are symbols, too, from `smallest(bundle)` on.
    """
    run, dtype = program(bundle, preprocess)
    height, width, channels = bundle.image_shape
    size = "height, width" if dynamic_size else f"{height}, {width}"
    least = smallest(bundle)
    limits = [f"{side} >= {least}" for side in ("height", "width")] if dynamic_size else []
    shape = export.symbolic_shape(f"batch, {size}, {channels}", constraints=limits)
    return export.export(jax.jit(run), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, dtype))


def smallest(bundle: Bundle) -> int:
    """Returns the height and width from which on a program for images of any size is valid."""
    return min(*bundle.image_shape[:2], SMALLEST)
