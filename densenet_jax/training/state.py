"""What a training step maps to its successor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


class TrainState(struct.PyTreeNode):
    """Everything that a run must keep; its step is its position in the data, too.

    Attributes:
      step: number of updates made, int32 [].
      params: the model's parameters.
      batch_stats: the running statistics of batch normalisation.
      opt_state: the optimiser's.
      nonfinite: steps in a row, up to this one, whose loss or gradients were not finite, int32 [];
        such a step counts, but changes nothing else.
      order: which order the data are in, int32 []: 0, and one more each time that a run went back
        to a checkpoint because its numbers had gone wrong.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    nonfinite: jax.Array
    order: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The state as `model.apply` takes it."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def from_variables(variables: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, from the model's variables."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        nonfinite=jnp.zeros((), jnp.int32),
        order=jnp.zeros((), jnp.int32),
    )


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """Returns a fresh state; to be jitted with the shardings it shall have, or only shaped.

    Args:
      image_shape: (height, width, channels) of the training images.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return from_variables(model.init(jax.random.key(seed), images), optimizer)
