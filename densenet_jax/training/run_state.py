"""The state of an experiment: its sharding, its initial value, and its shapes for restoring."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.state import TrainState


def state_sharding(setup: Experiment, optimizer: optax.GradientTransformation) -> Any:
    """Returns the sharding of the state: one for all its arrays, or a tree like the state.

    Args:
      setup: the experiment.
      optimizer: its optimiser, whose state is sharded, too.
    """
    if setup.mesh.shape["model"] == 1:
        return meshes.replicated(setup.mesh)
    state = abstract_state(setup, optimizer)
    return meshes.state_sharding(setup.mesh, state, setup.config.mesh.split_from)


def initial_state(setup: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, created directly in its sharding.

    Args:
      setup: the experiment, from whose weights the state starts, if it has any.
      optimizer: its optimiser.
    """
    sharding = state_sharding(setup, optimizer)
    if setup.weights is None:
        # It runs once: to optimise it would take longer than it does.
        quick = (
            {"xla_backend_optimization_level": 0}
            if setup.mesh.devices.flat[0].platform == "cpu"
            else None
        )
        fresh = jax.jit(_fresh(setup, optimizer), out_shardings=sharding, compiler_options=quick)
        return fresh()
    ema = setup.config.ema_decay > 0
    start = functools.partial(
        states.from_variables, optimizer=optimizer, ema=ema, dtype=setup.model.dtype
    )
    weights = jax.device_get(setup.weights.variables)  # every process has the same values
    return jax.jit(start, out_shardings=sharding)(weights)


def abstract_state(setup: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state as `jax.ShapeDtypeStruct`s; nothing is computed.

    Args:
      setup: the experiment.
      optimizer: its optimiser.

    Raises:
      ConfigError: the model cannot take the images.
    """
    try:
        return jax.eval_shape(_fresh(setup, optimizer))
    except ValueError as e:
        raise ConfigError(str(e)) from None


def restore_target(setup: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state as `jax.ShapeDtypeStruct`s with shardings, to restore a checkpoint into.

    Args:
      setup: the experiment.
      optimizer: its optimiser.
    """
    state, sharding = abstract_state(setup, optimizer), state_sharding(setup, optimizer)
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, state)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, sharding
    )


def _fresh(setup: Experiment, optimizer: optax.GradientTransformation) -> Callable[[], TrainState]:
    ema = setup.config.ema_decay > 0
    return _initial(setup.model, optimizer, setup.config.seed, setup.image_shape, ema)


@functools.lru_cache(maxsize=1)
def _initial(*arguments: Any) -> Callable[[], TrainState]:
    """Returns the same function for the same arguments: JAX traces it once a run, not twice."""
    return functools.partial(states.initial_state, *arguments)
