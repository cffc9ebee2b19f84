"""The training state, which each training step maps to the next one."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.training.dynamic_scale import DynamicScale


class TrainState(struct.PyTreeNode):
    """Everything that a run must store to be resumed; `step` is also its position in the data.

    Attributes:
      step: number of training steps so far, int32 [].
      params: the model's parameters.
      batch_stats: the running statistics of batch normalisation.
      opt_state: the optimiser's state.
      nonfinite: number of steps in a row, up to the current one, whose loss or gradients were not
        finite, int32 []; such a step is counted in `step`, but changes nothing else.
      order: number of the data's order, int32 []: 0 at first, and one more after each rollback to a
        checkpoint because of non-finite numbers.
      ema: moving averages of parameters and running statistics, {"params", "batch_stats"}, in at
        least float32; None if the run keeps none.
      loss_scale: the factor of the loss while gradients are computed, which keeps small gradients
        from becoming 0 in float16; None for other types.  It is halved after a step that is not
        finite, and doubled after 2,000 finite ones (Micikevicius et al., 2018, section 3.2).
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    nonfinite: jax.Array
    order: jax.Array
    ema: Any = None
    loss_scale: DynamicScale | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that are trained, {"params", "batch_stats"}, for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def result(self) -> dict[str, Any]:
        """The variables to evaluate, predict with and export: the moving averages, if kept.

        The best checkpoint is the one where these have the best metric.
        """
        return self.variables if self.ema is None else self.ema


def from_variables(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    ema: bool = False,
    dtype: Any = jnp.float32,
) -> TrainState:
    """Returns the state before the first step, from the model's variables.

    Args:
      variables: {"params": ..., "batch_stats": ...}; the latter may be missing.
      optimizer: the optimiser.
      ema: whether to keep moving averages, which start as copies of the variables.
      dtype: type of the model's computation.
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
        loss_scale=initial_loss_scale() if jnp.dtype(dtype) == jnp.float16 else None,
    )


def initial_loss_scale() -> DynamicScale:
    """Returns the scale of the loss before the first step in float16."""
    return DynamicScale().replace(fin_steps=jnp.zeros((), jnp.int32), scale=jnp.full((), 2.0**16))


def _copy_at_least_float32(x: jax.Array) -> jax.Array:
    """Returns a copy even if no conversion is needed, because no buffer may be donated twice."""
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)


def moved(averages: Any, values: Any, step: jax.Array, decay: float) -> Any:
    """Returns moving averages after one more step.

    Args:
      averages: the moving averages before the step.
      values: the new values, a tree of the same structure.
      step: number of steps before this one, int32 [].
      decay: the weight of the old averages.  In the first steps it is lower, (1 + step) /
        (10 + step), so that the initial values are soon forgotten (as in TensorFlow's
        ExponentialMovingAverage).
    """
    weight = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, v: a + (1 - weight).astype(a.dtype) * (v - a), averages, values)


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """Returns a state with random parameters.

    Callers either compile it (`jax.jit`) with the shardings that the state should have, or only
    ask for its shapes (`jax.eval_shape`).

    Args:
      model: the network.
      optimizer: the optimiser.
      seed: of the random parameters.
      image_shape: (height, width, channels) of the training images.
      ema: whether to keep moving averages.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = cast(Mapping[str, Any], model.init(jax.random.key(seed), images))
    return from_variables(variables, optimizer, ema, model.dtype)
