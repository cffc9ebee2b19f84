"""Code shared by several commands: opening a run, and checks of an output."""

import os
import pathlib
from typing import Any

import ml_collections

from densenet_jax.training import experiment
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_classes, run_weights


def open_run(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str
) -> tuple[experiment.Experiment, dict[str, Any], int]:
    """Opens a run for evaluation.

    Args:
      config: the run's configuration; its `init_from` is cleared.
      workdir: the run's directory.
      checkpoint: "best", "latest" or a step.

    Returns:
      the experiment; the variables of the checkpoint, {"params", "batch_stats"}; and its step.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    with config.unlocked():
        config.init_from = ""  # the checkpoint replaces the initial weights
    setup = experiment.build(config)
    run_classes.check(setup.eval_source.class_names, pathlib.Path(workdir))
    _, variables, _, step = run_weights.read(workdir, setup.config, checkpoint)
    return setup, variables, step


def check_output(path: str) -> None:
    """Checks, before a long computation, that the file for its result can be written.

    Raises:
      ConfigError: it cannot.
    """
    folder = pathlib.Path(path).resolve().parent
    if pathlib.Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"--output={path} cannot be written; choose a file in an existing, writable folder."
        )
