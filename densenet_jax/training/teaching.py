"""What a teacher says about every example of a split, for `distillation.write_logits`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from densenet_jax.data import device, pipeline
from densenet_jax.data.sources import Source
from densenet_jax.training import mesh as meshes
from densenet_jax.weights import Pretrained


def logits_of(
    teacher: Pretrained,
    source: Source,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int], Any] = lambda done: None,
    **options: Any,
) -> np.ndarray:
    """Returns logits float16 [examples, classes] of the central crops, in the split's order.

    An example that cannot be read has zeros; training passes it over, too.

    Args:
      progress: told the number of examples done after each batch.
      **options: `workers` and `strict`, of `pipeline.eval_batches`.
    """
    model, look = teacher.model, teacher.preprocessing
    variables = jax.device_put(teacher.variables, meshes.replicated(mesh))

    @jax.jit
    def answers(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, device.normalize(images, look.mean, look.std, model.dtype))

    reader = pipeline.eval_batches(
        source,
        batch_size=batch_size,
        image_size=look.image_size,
        channels=model.in_channels,
        crop_fraction=look.crop_fraction,
        interpolation=look.interpolation,
        **options,
    )
    found = np.zeros((len(source), model.num_classes), np.float16)
    with pipeline.to_mesh(reader, meshes.batch_sharding(mesh)) as batches, jax.set_mesh(mesh):
        for i, batch in enumerate(batches):
            rows = found[i * batch_size : (i + 1) * batch_size]
            mask = np.asarray(batch["mask"])[: len(rows)]
            logits = np.asarray(answers(variables, batch["image"]))[: len(rows)]
            rows[mask] = logits[mask]
            progress(min((i + 1) * batch_size, len(source)))
    return found
