"""StableHLO: one program for CPU, CUDA and TPU, weights inside, for any size of batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from densenet_jax.data.augment import device
from densenet_jax.export.bundle import Bundle

PLATFORMS = ("cpu", "cuda", "tpu")


def program(bundle: Bundle, preprocess: bool):
    """Returns the function that is exported, and the type of its images.

    Args:
      preprocess: uint8 pixels to probabilities; else normalised float32 images to logits.
    """
    model, variables, given = bundle.model, bundle.variables, bundle.preprocessing

    def run(images: jax.Array) -> jax.Array:
        if not preprocess:
            return model.apply(variables, images)
        images = device.normalize(images, given.mean, given.std, jnp.float32)
        scores = model.apply(variables, images)
        return jax.nn.softmax(scores) if model.num_classes else scores

    return run, np.uint8 if preprocess else np.float32


def to_stablehlo(bundle: Bundle, preprocess: bool = False) -> export.Exported:
    """Returns the exported program [B, H, W, C] -> [B, classes], with B symbolic."""
    run, dtype = program(bundle, preprocess)
    shape = export.symbolic_shape(f"batch, {', '.join(map(str, bundle.image_shape))}")
    return export.export(jax.jit(run), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, dtype))
