"""A teacher's logits of every example of a split, for `distillation.write_logits`."""

from typing import Any, cast

import jax
import ml_collections
import numpy as np

from densenet_jax.data.augment import device
from densenet_jax.data.reading import pipeline
from densenet_jax.data.sources.source import Source
from densenet_jax.training import distillation, settings
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import Pretrained


def logits_of(
    teacher: Pretrained,
    source: Source,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    **options: Any,
) -> np.ndarray:
    """Returns a teacher's logits of the central crops, float16 [examples, classes].

    Rows are in the order of the split.  The row of an unreadable example is 0; training skips such
    an example, too.

    Args:
      teacher: model, variables and preprocessing.
      source: the split.
      batch_size: number of images in a batch, over all devices.
      mesh: the devices.
      **options: `workers` and `strict` of `pipeline.eval_batches`.
    """
    model, look = teacher.model, teacher.preprocessing
    variables = jax.device_put(teacher.variables, meshes.replicated(mesh))

    @jax.jit
    def answers(variables: Any, images: jax.Array) -> jax.Array:
        images = device.normalize(images, look.mean, look.std, model.dtype, look.ends)
        return cast(jax.Array, model.apply(variables, images))

    reader = pipeline.eval_batches(
        source,
        batch_size=batch_size,
        channels=model.in_channels,
        **look.reading,
        **options,
    )
    found = np.zeros((len(source), model.num_classes), np.float16)
    with pipeline.to_mesh(reader, meshes.batch_sharding(mesh)) as batches, jax.set_mesh(mesh):
        for i, batch in enumerate(batches):
            rows = found[i * batch_size : (i + 1) * batch_size]
            mask = np.asarray(batch["mask"])[: len(rows)]
            logits = np.asarray(answers(variables, batch["image"]))[: len(rows)]
            rows[mask] = logits[mask]
    return found


def write(
    config: ml_collections.ConfigDict, source: str, path: str, model: str | None = None
) -> int:
    """Writes a teacher's logits for the training split; returns the number of examples.

    Args:
      config: the student's configuration, for its data, mesh and evaluation batch size.
      source: the teacher's weights: a published name, a file or a run's directory, see
        `weights.load`.
      path: the file to write.
      model: the variant of the weights; None: they say it.

    Raises:
      ConfigError, DataError, WeightsError, CheckpointError: teacher or data do not exist, cannot be
        read, or have different numbers of classes.
    """
    data, mesh = config.data, settings.make_mesh(config)
    meshes.check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    teacher = run_weights.load(source, model)
    split = settings.train_source(config)
    if teacher.model.num_classes != split.num_classes:
        raise ConfigError(
            f"{source} has {teacher.model.num_classes} classes, but {data.name} has "
            f"{split.num_classes}; fine-tune it on {data.name} first."
        )
    found = logits_of(
        teacher,
        split,
        batch_size=config.eval_batch_size,
        mesh=mesh,
        workers=data.workers,
        strict=data.strict,
    )
    about = {"teacher": source, "data": data.name, "split": data.train_split}
    distillation.write_logits(path, found, about)
    return len(found)
