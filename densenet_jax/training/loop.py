"""train_and_evaluate: a whole run, from opening its directory to the final metrics."""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from densenet_jax.data.sources import leaks
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
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Trains until the configured length is reached; in the directory of a run it resumes the run.

    Args:
      config: the configuration; configs/default.py documents its keys.
      workdir: the run's directory, created if it does not exist; README.md lists its files.
      listeners: receive every record of metrics.jsonl, in addition to the configured loggers.

    Returns:
      the metrics of the last evaluation, and "step": the last step; "best_step": the step of the
      best checkpoint; "best": the `eval_loop.Evaluated` of that step, or None if it was evaluated
      before the run was resumed; "seconds": the duration of this call.

    Raises:
      ConfigError, DataError, WeightsError: the configuration, data or initial weights cannot be
        used.
      CheckpointError: checkpoints cannot be read, or the last one could not be written.
      Interrupted: SIGTERM, SIGINT or SIGHUP came; the state is saved if the disk can be written.
      NonFiniteError: loss or gradients stayed non-finite; nonfinite.json says where it began.
    """
    began = time.monotonic()
    loggers.check(config.loggers, installed=True)
    folder = pathlib.Path(workdir)
    config, resumes = saved_config.settled(config, folder)
    setup = experiment.build(config, resumes)
    config = setup.config
    train_source = settings.train_source(config)
    if train_source.num_classes != setup.eval_source.num_classes:
        raise ConfigError(
            f"{config.data.name}: {config.data.train_split} has {train_source.num_classes} "
            f"classes and {config.data.eval_split} {setup.eval_source.num_classes}."
        )
    notes = batches.notes(setup, train_source)
    if jax.process_index() == 0:
        shared = leaks.notes(train_source, setup.eval_source)
        train_source = dataclasses.replace(train_source, notes=(*train_source.notes, *shared))
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

    make_workdir(config, setup.eval_source.class_names, folder)
    keep, score = config.checkpoints_to_keep, setup.task.best.score
    with locked(folder), Checkpoints(folder, keep, score=score) as checkpoints:
        first = jax.process_index() == 0  # only the first process of a job writes files
        if first:
            save_config(config, setup.eval_source.class_names, folder)
            environment.save(folder)
        check_shared(config, folder)
        optimizer, schedule = run_steps.optimizer(setup, length.total, length.epoch)
        state = latest_state(setup, optimizer, checkpoints)
        start = int(state.step)
        if first:
            listeners = [*listeners, *loggers.open_loggers(config.loggers, folder, config)]
        else:
            listeners = []
        with (
            MetricsLog(folder / "metrics.jsonl", start, listeners, read_only=not first) as log,
            ProgressLine(length.total, start, functools.partial(short, setup)) as progress,
            stop_requests() as stop_requested,
            jax.set_mesh(setup.mesh),  # the model's GPU kernels look up the current mesh
        ):
            say_start(progress, setup, train_source, start, length.total, notes)
            trainer = Trainer(
                setup,
                train_source,
                length,
                optimizer,
                schedule,
                workdir=folder,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                stop_requested=stop_requested,
            )
            metrics = trainer.run(state)
        lost = checkpoints.missing(trainer.step) if start < trainer.step else None
        if lost:
            raise CheckpointError(
                f"The run has reached step {trainer.step}, but {lost}. Repair the disk or free "
                "some space on it, then run the same command again: it continues from there."
            )
        best_step = checkpoints.resolve("best")
    best = trainer.best
    return {
        **metrics,
        "step": max(start, trainer.step),
        "best_step": best_step,
        "best": best if best and best.step == best_step else None,
        "seconds": time.monotonic() - began,
    }


def short(setup: experiment.Experiment, metrics: Mapping[str, Any]) -> str:
    """Returns a training step's metrics for the progress line; those of mixed images say so."""
    augment, text = setup.config.augment, setup.task.short(metrics)
    return f"{text} (of mixed images)" if augment.mixup or augment.cutmix else text


def say_start(
    progress: ProgressLine,
    setup: experiment.Experiment,
    train_source: Source,
    start: int,
    total: int,
    notes: Sequence[str] = (),
) -> None:
    """Prints model, data, batch size and devices, before the first step compiles.

    Args:
      progress: the line to print above.
      setup: the experiment.
      train_source: the training split.
      start: the step that the run starts from; 0: a new run.
      total: number of steps in the whole run.
      notes: further lines to print.
    """
    config = setup.config
    state = f"resuming at step {start} of {total}" if start else f"{total} steps"
    batch = f"batch {config.batch_size}{setup.groups.describe(config.batch_size)}"
    if not start and setup.weights:
        for note in (setup.weights.report, *setup.weights.notes):
            progress.note(f"{config.init_from}: {note}")
    if config.optimizer.frozen:
        moves = config.model.freeze_statistics is False
        kept = "their running statistics move" if moves else "with their running statistics"
        progress.note(f"frozen: {', '.join(config.optimizer.frozen)} ({kept})")
    progress.note(
        f"{config.model.name} on {config.data.name}: {len(train_source)} training and "
        f"{len(setup.eval_source)} evaluation images, {batch}, {state}"
    )
    for note in dict.fromkeys((*train_source.notes, *setup.eval_source.notes, *notes)):
        progress.note(note)
    for line in meshes.describe(setup.mesh):
        progress.note(line)
