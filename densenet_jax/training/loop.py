"""train_and_evaluate: what holds a run together, from its directory and back."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from densenet_jax.data.sources.source import Source
from densenet_jax.training import batches, experiment, run_steps, settings
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.jobs.stopping import stop_requests
from densenet_jax.training.rundir import environment, loggers, saved_config
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.loggers import Listener
from densenet_jax.training.rundir.metrics_log import MetricsLog
from densenet_jax.training.rundir.progress import ProgressLine
from densenet_jax.training.rundir.workdir import check_shared, locked, make_workdir, save_config
from densenet_jax.training.trainer import Length, Trainer, latest_state


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str, listeners: Sequence[Listener] = ()
) -> dict[str, Any]:
    """Trains until the run's length is reached; started again in the same directory it resumes.

    Args:
      config: see configs/default.py.
      workdir: the run's directory, made if it does not exist; README.md lists its files.
      listeners: told of every record of metrics.jsonl, as the loggers of the configuration are.

    Returns:
      the metrics of the last evaluation, with `step`, `best_step` and `seconds`; `best`: the
      `eval_loop.Evaluated` of that step, None if the run made it before it was resumed.

    Raises:
      ConfigError, DataError, CheckpointError: the user's to mend.
      Interrupted: SIGTERM, SIGINT or SIGHUP came; the state is saved if the disk can be written.
      NonFiniteError: the numbers stayed bad; nonfinite.json says where they began.
    """
    began = time.monotonic()
    loggers.check(config.loggers, installed=True)
    workdir = pathlib.Path(workdir)
    config, resumes = saved_config.settled(config, workdir)
    setup = experiment.build(config, resumes)
    config = setup.config
    train_source = settings.train_source(config)
    if train_source.num_classes != setup.eval_source.num_classes:
        raise ConfigError(
            f"{config.data.name}: {config.data.train_split} has {train_source.num_classes} "
            f"classes and {config.data.eval_split} {setup.eval_source.num_classes}."
        )
    train_source = batches.in_memory(setup, train_source, train=True)
    eval_source = batches.in_memory(setup, setup.eval_source, train=False)
    setup = dataclasses.replace(setup, eval_source=eval_source)
    run_steps.check_training(setup, train_source)
    epoch = len(train_source) / config.batch_size
    length = Length(
        total=settings.total_steps(config, len(train_source)),
        epoch=epoch,
        evaluation=max(1.0, config.eval_every_epochs * epoch),
    )

    make_workdir(config, workdir)
    keep, score = config.checkpoints_to_keep, setup.task.best.score
    with locked(workdir), Checkpoints(workdir, keep, score=score) as checkpoints:
        first = jax.process_index() == 0  # of the processes of the job; it alone writes
        if first:
            save_config(config, setup.eval_source.class_names, workdir)
            environment.save(workdir)
        check_shared(config, workdir)
        optimizer, schedule = run_steps.optimizer(setup, length.total, length.epoch)
        state = latest_state(setup, optimizer, checkpoints)
        start = int(state.step)
        if first:
            listeners = [*listeners, *loggers.open_loggers(config.loggers, workdir, config)]
        else:
            listeners = []
        with (
            MetricsLog(workdir / "metrics.jsonl", start, listeners, read_only=not first) as log,
            ProgressLine(length.total, start, setup.task.short) as progress,
            stop_requests() as stop_requested,
            jax.set_mesh(setup.mesh),  # the GPU kernels of the model ask what they are spread over
        ):
            say_start(progress, setup, train_source, start, length.total)
            trainer = Trainer(
                setup,
                train_source,
                length,
                optimizer,
                schedule,
                workdir=workdir,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                stop_requested=stop_requested,
            )
            metrics = trainer.run(state)
        lost = checkpoints.missing(length.total) if start < length.total else None
        if lost:
            raise CheckpointError(
                f"The run has reached step {length.total}, but {lost}. Mend the disk, or make room "
                "on it; then the same command goes on from there."
            )
        best_step = checkpoints.resolve("best")
    best = trainer.best
    return {
        **metrics,
        "step": max(start, length.total),
        "best_step": best_step,
        "best": best if best and best.step == best_step else None,
        "seconds": time.monotonic() - began,
    }


def say_start(
    progress: ProgressLine,
    setup: experiment.Experiment,
    train_source: Source,
    start: int,
    total: int,
) -> None:
    """Prints what runs where, before the first step compiles."""
    config = setup.config
    state = f"resuming at step {start} of {total}" if start else f"{total} steps"
    batch = f"batch {config.batch_size}{setup.groups.describe(config.batch_size)}"
    if not start and setup.weights:
        progress.note(f"{config.init_from}: {setup.weights.report}")
    if config.optimizer.frozen:
        progress.note(f"frozen: {', '.join(config.optimizer.frozen)}")
    progress.note(
        f"{config.model.name} on {config.data.name}: {len(train_source)} training and "
        f"{len(setup.eval_source)} evaluation images, {batch}, {state}"
    )
    for line in meshes.describe(setup.mesh):
        progress.note(line)
