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
      ema: moving averages of parameters and running statistics, {"params", "batch_stats"}, in at
        least float32; None: none are kept.
      order: which order the data are in, int32 []: 0, and one more each time that a run went back
        to a checkpoint because its numbers had gone wrong.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    nonfinite: jax.Array
    order: jax.Array
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What trains, as `model.apply` takes it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def result(self) -> dict[str, Any]:
        """What the run is judged by, predicts with and gives away: averages, where it keeps them.

        A checkpoint is the best by the accuracy of these.
        """
        return self.variables if self.ema is None else self.ema


def from_variables(
    variables: dict, optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """Returns the state before the first step, from the model's variables.

    Args:
      ema: keep moving averages, which start as copies.
    """
    params, averages = variables["params"], None
    if ema:
        averages = {"params": params, "batch_stats": variables.get("batch_stats", {})}
        averages = jax.tree.map(_copy_at_least_float32, averages)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        nonfinite=jnp.zeros((), jnp.int32),
        order=jnp.zeros((), jnp.int32),
        ema=averages,
    )


def _copy_at_least_float32(x: jax.Array) -> jax.Array:
    """A copy also where nothing has to be converted: no buffer may be donated twice."""
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)


def moved(averages: Any, values: Any, step: jax.Array, decay: float) -> Any:
    """Returns moving averages after one more step.

    Args:
      averages, values: trees of the same structure.
      step: number of updates made before, int32 [].
      decay: weight of the averages; less in the first steps, (1 + step) / (10 + step), so that the
        initial values are soon forgotten (as in TensorFlow's ExponentialMovingAverage).
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, v: a + (1 - decay).astype(a.dtype) * (v - a), averages, values)


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """Returns a fresh state; to be jitted with the shardings it shall have, or only shaped.

    Args:
      image_shape: (height, width, channels) of the training images.
      ema: as of `from_variables`.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return from_variables(model.init(jax.random.key(seed), images), optimizer, ema)
