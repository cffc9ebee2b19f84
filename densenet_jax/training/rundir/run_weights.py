"""Weights from the directory of a run: its model, the variables of a checkpoint, preprocessing."""

import functools
import os
import pathlib
from typing import Any

import jax
import ml_collections
import optax
from flax import linen as nn

from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training import checks, settings
from densenet_jax.training import state as states
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import run_outputs, saved_config
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.run_classes import class_names
from densenet_jax.weights import Preprocessing, Pretrained
from densenet_jax.weights import load as load_weights

__all__ = ["class_names", "load", "read", "read_config", "read_run"]


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the configuration stored in a run's directory.

    Raises:
      CheckpointError: config.json is missing or damaged.
    """
    return saved_config.load(pathlib.Path(workdir) / "config.json")


def read_run(folder: str) -> tuple[nn.Module, dict[str, Any], Preprocessing, Outputs]:
    """Returns the model, variables, preprocessing and outputs of a run's best checkpoint."""
    config = read_config(folder)
    model, variables, preprocessing, step = read(folder, config)
    return model, variables, preprocessing, run_outputs.read(folder, config, step)


def load(source: str | os.PathLike[str], *args: Any, **options: Any) -> Pretrained:
    """Returns weights like `weights.load`, but also from the directory of a run.

    Args:
      source: a published name, a file or the directory of a run.
      *args: as for `weights.load`.
      **options: as for `weights.load`.
    """

    return load_weights(source, *args, read_run=read_run, **options)


def read(
    workdir: str, config: ml_collections.ConfigDict, which: str = "best"
) -> tuple[nn.Module, dict[str, Any], Preprocessing, int]:
    """Reads a checkpoint of a run; neither the data nor the devices of the run are needed.

    Args:
      workdir: the run's directory.
      config: the run's configuration, from its config.json.
      which: "best", "latest" or a step.

    Returns:
      the model, the variables to predict with ({"params", "batch_stats"}; the moving averages if
      the run keeps them), the preprocessing, and the checkpoint's step.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      ConfigError: the configuration does not describe a network.
    """
    checks.check_values(config, ("model.", "data."))  # config.json may have been edited
    model, data = settings.build_model(config), config.data
    for key in saved_config.PREPROCESSING:
        if data[key] is None:
            raise CheckpointError(f"{workdir}/config.json is damaged: data.{key} is missing.")
    optimizer = settings.make_optimizer(config, optax.constant_schedule(0.0))

    ema = config.ema_decay > 0
    shape = (data.image_size, data.image_size, data.channels)
    fresh = functools.partial(states.initial_state, model, optimizer, 0, shape, ema)

    score = settings.make_task(config).best.score
    with Checkpoints(workdir, read_only=True, score=score) as checkpoints:
        on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_device),
            jax.eval_shape(fresh),
        )
        step, state = checkpoints.restore(which, target)
    return model, state.result, settings.preprocessing(config), step
