"""Knowledge distillation (Hinton et al., 2015): a teacher, or what it once said, beside the labels.

A model as teacher sees the very images that the student sees, augmented and mixed (Beyer et al.,
2022: "a good teacher is patient and consistent").  Stored logits have one row for each example of
the training split, and know nothing of augmentation; they cost no computation.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densenet_jax.tasks.losses import Loss
from densenet_jax.training.errors import ConfigError
from densenet_jax.weights import Pretrained, locate, write_safetensors

STORED = "logits"  # the tensor's name in a file


def distilling(loss: Loss, weight: float, temperature: float) -> Loss:
    """Returns the loss of a student: (1 - weight) loss + weight T^2 KL(teacher || student).

    Args:
      loss: with respect to the labels.
      weight: of the teacher.
      temperature: T, which logits of both are divided by before the softmax.

    Returns:
      maps logits and (targets, teacher's logits [B, classes], whether they are of the same image,
      bool [B]) to losses [B]; where they are not, the labels alone count.
    """

    def student(logits: jax.Array, targets: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        targets, guide, known = targets
        own = loss(logits, targets)
        guide = jax.nn.log_softmax(guide.astype(own.dtype) / temperature)
        log_p = jax.nn.log_softmax(logits.astype(own.dtype) / temperature)
        divergence = temperature**2 * jnp.sum(jnp.exp(guide) * (guide - log_p), axis=-1)
        return own + jnp.where(known, weight, 0.0) * (divergence - own)

    return student


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model of this library with weights, for normalised images of the student.

    Attributes:
      gain, shift: per channel, from the student's normalisation to the teacher's.
    """

    model: nn.Module
    variables: Any
    gain: np.ndarray
    shift: np.ndarray

    def guide(self, images: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Returns logits [B, classes] for images [B, H, W, C], and that all are to be used."""
        images = images.astype(jnp.float32) * self.gain + self.shift
        logits = self.model.apply(batch["teacher"], images.astype(self.model.dtype))
        return logits, jnp.ones(len(images), bool)

    def beside(self, step: Callable, sharding: jax.sharding.Sharding) -> Callable:
        """Returns a step that gets the teacher with each batch: no program has it as constants."""
        variables = jax.device_put(jax.device_get(self.variables), sharding)
        return lambda state, batch: step(state, {**batch, "teacher": variables})


def stored_guide(images: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Returns the stored logits of a batch; those of an image that was replaced are not used."""
    return batch["teacher"], batch["bad"] == 0


def make_teacher(weights: Pretrained, num_classes: int, channels: int, mean, std) -> Teacher:
    """Returns the teacher that weights make.

    Args:
      num_classes, channels: of the student.
      mean, std: of the student's normalisation.

    Raises:
      ConfigError: it has other classes or channels.
    """
    model, own = weights.model, weights.preprocessing
    if (model.num_classes, model.in_channels) != (num_classes, channels):
        raise ConfigError(
            f"config.distill.teacher has {model.num_classes} classes and {model.in_channels} "
            f"channels, the student {num_classes} and {channels}; take a teacher of the same data, "
            "or fine-tune this one first."
        )
    mean, std, own_mean, own_std = (np.float32(x) for x in (mean, std, own.mean, own.std))
    return Teacher(model, weights.variables, std / own_std, (mean - own_mean) / own_std)


@dataclasses.dataclass(frozen=True)
class StoredLogits:
    """A file of `write_logits`, read row by row.

    Attributes:
      offset: of the first byte of the array in the file.
    """

    path: str
    dtype: str
    shape: tuple[int, int]
    offset: int

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        """Returns the rows of some examples, float32 [b, classes]."""
        # Opened for each batch: nothing to pickle for worker processes, and the pages stay cached.
        rows = np.memmap(self.path, np.dtype(self.dtype), "r", self.offset, self.shape)
        return rows[examples].astype(np.float32)


def write_logits(path: str | os.PathLike[str], logits: np.ndarray, about: dict[str, str]) -> None:
    """Writes a teacher's logits, safetensors, one row for each example of the split in its order.

    Args:
      logits: [examples, classes]; kept as float16, which is more than a teacher knows.
      about: where they come from, for whoever finds the file.
    """
    write_safetensors(path, {STORED: np.asarray(logits, np.float16)}, metadata=about)


def open_logits(path: str, examples: int, num_classes: int) -> StoredLogits:
    """Opens a file of `write_logits`; only its header is read, and sizes are checked against it.

    Args:
      examples, num_classes: what the training split has.

    Raises:
      WeightsError: it is no such file.
      ConfigError: it is of other data.
    """
    tensors = locate(path)
    if STORED not in tensors or np.dtype(tensors[STORED][0]).kind != "f":
        raise ConfigError(
            f"config.distill.logits: {path} has no floating-point tensor {STORED!r}; "
            "write it with the command logits."
        )
    dtype, shape, offset = tensors[STORED]
    if shape != (examples, num_classes):
        raise ConfigError(
            f"config.distill.logits: {path} has {json.dumps(shape)} logits, but the training split "
            f"has {examples} examples of {num_classes} classes; write it for this data set."
        )
    return StoredLogits(path, dtype.str, shape, offset)
