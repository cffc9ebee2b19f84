"""The learning-rate range test (Smith, 2017): the loss while the learning rate grows."""

import json
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.training import batches, experiment, run_state, run_steps, settings
from densenet_jax.training.errors import ConfigError

LOW, HIGH = 1e-6, 10.0  # of the learning rate
STEPS = 100
SMOOTHING = 0.9  # weight of the past in the mean of the loss
DIVERGED = 4.0  # the test ends where the loss is so many times its minimum


def test(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Trains from the start with a learning rate that grows by a constant factor.

    Args:
      config: the configuration; its schedule and learning rate are not used.

    Returns:
      {"learning_rate", "loss" (smoothed): of each step; "suggestion": the learning rate at which
      the loss falls fastest, a good peak of a schedule; None if it never falls}.

    Raises:
      ConfigError: the optimiser has no learning rate to vary.
    """
    setup = experiment.build(config)
    source = batches.in_memory(setup, settings.train_source(setup.config), train=True)
    run_steps.check_training(setup, source)
    with setup.config.unlocked():
        setup.config.steps_per_dispatch = 1

    def schedule(step: Any) -> Any:
        return LOW * (HIGH / LOW) ** (step / (STEPS - 1))

    optimizer = settings.make_optimizer(setup.config, schedule)
    rates, losses, mean = [], [], 0.0
    with jax.set_mesh(setup.mesh):
        state = run_state.initial_state(setup, optimizer)
        step = run_steps.train_step(setup, optimizer, schedule)
        with batches.train_batches(setup, source, state) as stream:
            for number, batch in zip(range(STEPS), stream, strict=False):
                state, metrics = step(state, batch)
                loss = float(metrics["loss"])
                if not np.isfinite(loss):
                    break
                mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
                losses.append(mean / (1 - SMOOTHING ** (number + 1)))
                rates.append(float(schedule(number)))
                if losses[-1] > DIVERGED * min(losses):
                    break
    if len(losses) < 10:
        raise ConfigError(
            f"The loss was not finite after {len(losses)} steps with learning rates from {LOW:g} "
            "on: the data, the weights or the model are at fault, not the learning rate."
        )
    return {"learning_rate": rates, "loss": losses, "suggestion": suggestion(rates, losses)}


def suggestion(rates: list[float], losses: list[float]) -> float | None:
    """Returns the learning rate at which the loss falls fastest, before its minimum.

    Args:
      rates: the learning rate of each step, ascending.
      losses: the smoothed loss of each step.
    """
    end = int(np.argmin(losses)) + 1
    if end < 3:
        return None
    slope = np.gradient(np.asarray(losses[:end]), np.log(rates[:end]))
    steepest = int(np.argmin(slope))
    return rates[steepest] if slope[steepest] < 0 else None


def write(found: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes find_lr.json and the plot find_lr.svg; returns their paths."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "find_lr.json", folder / "find_lr.svg"]
    atomic_files.write(paths[0], json.dumps(found, indent=1) + "\n")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["learning_rate"], found["loss"])
    if found["suggestion"]:
        axes.axvline(found["suggestion"], color="tab:red", linestyle="--")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    figure.savefig(paths[1])
    return paths
