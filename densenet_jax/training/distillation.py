"""Knowledge distillation (Hinton et al., 2015): a student learns from labels and from a teacher.

The teacher is either a model or a file of its logits.  A model sees the same augmented and mixed
images as the student (Beyer et al., 2022: "a good teacher is patient and consistent").  Stored
logits have one row for each example of the training split; they cost no computation, but do not
take augmentation into account.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densenet_jax.tasks.losses import Loss, TrainLoss
from densenet_jax.training.errors import ConfigError
from densenet_jax.weights import Pretrained, locate, write_safetensors

STORED = "logits"  # the tensor's name in the safetensors file


def softmax_divergence(logits: jax.Array, guide: jax.Array) -> jax.Array:
    """Returns KL(teacher || student) of the distributions over classes, [B, C] -> [B]."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(guide)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def sigmoid_divergence(logits: jax.Array, guide: jax.Array) -> jax.Array:
    """Returns the mean over the labels of KL(teacher || student) of each label, [B, L] -> [B]."""
    q = jax.nn.sigmoid(guide)
    present = q * (jax.nn.log_sigmoid(guide) - jax.nn.log_sigmoid(logits))
    absent = (1 - q) * (jax.nn.log_sigmoid(-guide) - jax.nn.log_sigmoid(-logits))
    return (present + absent).mean(axis=-1)


def mean_squared_difference(outputs: jax.Array, guide: jax.Array) -> jax.Array:
    """Returns the mean over the numbers of the squared difference, [B, L] -> [B]."""
    return jnp.square(outputs - guide).mean(axis=-1)


# Task -> how far a student's outputs are from its teacher's
DIVERGENCES = {
    "classification": softmax_divergence,
    "multilabel": sigmoid_divergence,
    "regression": mean_squared_difference,
}


def distilling(
    loss: Loss, weight: float, temperature: float, task: str = "classification"
) -> TrainLoss:
    """Returns the loss of a student: (1 - weight) loss + weight T^2 KL(teacher || student).

    Args:
      loss: the loss with respect to the labels.
      weight: the share of the teacher, from 0 to 1.
      temperature: T; the logits of both networks are divided by it before they are compared.
      task: what the networks are trained for, a key of `DIVERGENCES`.

    Returns:
      a function of the student's logits [B, classes] and (targets [B, classes], teacher's logits
      [B, classes], use bool [B]) that returns losses [B]; where `use` is False, as for stored
      logits of a replaced image, the labels alone count.
    """
    divergence = DIVERGENCES[task]

    def student(logits: jax.Array, guided: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        targets, guide, known = guided
        own = loss(logits, targets)
        outputs, wanted = (x.astype(own.dtype) / temperature for x in (logits, guide))
        taught = temperature**2 * divergence(outputs, wanted)
        return own + jnp.where(known, weight, 0.0) * (taught - own)

    return student


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A pretrained model of this library that takes images in the student's normalisation.

    Attributes:
      model: the teacher's network.
      variables: its variables, {"params": ..., "batch_stats": ...}.
      gain: float32 [C]; image * gain + shift converts the student's normalisation to the teacher's.
      shift: float32 [C].
    """

    model: nn.Module
    variables: Any
    gain: np.ndarray
    shift: np.ndarray

    def guide(self, images: jax.Array, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns the teacher's logits [B, classes], and True [B]: all of them are used.

        Args:
          images: normalised for the student, [B, H, W, C].
          batch: holds the teacher's variables under "teacher", see `beside`.
        """
        images = images.astype(jnp.float32) * self.gain + self.shift
        logits = self.model.apply(batch["teacher"], images.astype(self.model.dtype))
        return cast(jax.Array, logits), jnp.ones(len(images), bool)

    def beside(
        self, step: Callable[..., Any], sharding: jax.sharding.Sharding
    ) -> Callable[..., Any]:
        """Returns a step to which each batch also brings the teacher's variables, as "teacher".

        As arguments they do not become constants of the compiled program.

        Args:
          step: a function of (state, batch).
          sharding: of the teacher's variables.
        """
        variables = jax.device_put(jax.device_get(self.variables), sharding)
        return lambda state, batch: step(state, {**batch, "teacher": variables})


def stored_guide(images: jax.Array, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Returns a batch's stored logits [B, classes], and whether each is used, bool [B].

    Those of unreadable images are not used: another image has taken their place.

    Args:
      images: not used; a model as teacher needs them.
      batch: with "teacher": the stored logits, and "bad": int32 [B], 1 for replaced images.
    """
    return batch["teacher"], batch["bad"] == 0


def make_teacher(
    weights: Pretrained,
    num_classes: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Teacher:
    """Returns pretrained weights as a teacher.

    Args:
      weights: the teacher's model, variables and preprocessing.
      num_classes: the student's number of classes.
      channels: the student's number of input channels.
      mean: the mean of the student's normalisation, one value per channel or a single one.
      std: its standard deviation, likewise.

    Raises:
      ConfigError: the teacher has another number of classes or channels.
    """
    model, own = weights.model, weights.preprocessing
    if (model.num_classes, model.in_channels) != (num_classes, channels):
        raise ConfigError(
            f"config.distill.teacher has {model.num_classes} classes and {model.in_channels} "
            f"channels, but the student has {num_classes} and {channels}; use a teacher for the "
            "same data, or fine-tune this one first."
        )
    given_mean, given_std, own_mean, own_std = (
        np.asarray(x, np.float32) for x in (mean, std, own.mean, own.std)
    )
    shift = (given_mean - own_mean) / own_std
    return Teacher(model, weights.variables, given_std / own_std, shift)


@dataclasses.dataclass(frozen=True)
class StoredLogits:
    """A file of `write_logits`, from which rows are read when they are asked for.

    Attributes:
      path: the safetensors file.
      dtype: the type of its numbers, as NumPy writes it ("<f2").
      shape: (examples, classes).
      offset: position of the array's first byte in the file.
    """

    path: str
    dtype: str
    shape: tuple[int, int]
    offset: int

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        """Returns the rows of the given examples (integers [b]), float32 [b, classes]."""
        # The file is opened for each batch: worker processes then need no pickled array, and the
        # operating system keeps the pages cached anyway.
        rows = np.memmap(self.path, np.dtype(self.dtype), "r", self.offset, self.shape)
        return rows[examples].astype(np.float32)


def write_logits(path: str | os.PathLike[str], logits: np.ndarray, about: dict[str, str]) -> None:
    """Writes a teacher's logits to a safetensors file.

    Args:
      path: the file.
      logits: [examples, classes], in the order of the split; they are stored as float16, which is
        more precise than any teacher.
      about: the file's metadata: where the logits come from.
    """
    write_safetensors(path, {STORED: np.asarray(logits, np.float16)}, metadata=about)


def open_logits(path: str, examples: int, num_classes: int) -> StoredLogits:
    """Opens a file of `write_logits`; only its header is read.

    Args:
      path: the file.
      examples: number of examples in the training split.
      num_classes: its number of classes.

    Raises:
      WeightsError: it is not a safetensors file.
      ConfigError: it has no logits, or not as many examples and classes as the training split.
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
            f"has {examples} examples of {num_classes} classes; write the file again for this data "
            "set, with the command logits."
        )
    return StoredLogits(path, dtype.str, shape, offset)
