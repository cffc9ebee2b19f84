"""train_and_evaluate: the loop that holds a run together, from its directory and back."""

import collections
import dataclasses
import pathlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import ml_collections

from densenet_jax import evaluation
from densenet_jax.data import sources
from densenet_jax.training import diagnose, environment, experiment
from densenet_jax.training import mesh as meshes
from densenet_jax.training.checkpoints import Checkpoints
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.metrics_log import MetricsLog
from densenet_jax.training.progress import ProgressLine
from densenet_jax.training.recorder import Recorder
from densenet_jax.training.state import TrainState
from densenet_jax.training.workdir import locked, make_workdir, save_config


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains until the run's length is reached; started again in the same directory it resumes.

    Args:
      config: see configs/default.py.
      workdir: the run's directory, made if it does not exist; docs/design.md lists its files.

    Returns:
      the metrics of the last evaluation, with `step`, `best_step` and `seconds`.

    Raises:
      ConfigError, DataError, CheckpointError: the user's to mend.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    began = time.monotonic()
    setup = experiment.build(config)
    config = setup.config
    data = config.data
    train_source = sources.load(data.name, data.train_split, data.data_dir, data.holdout)
    if train_source.num_classes != setup.eval_source.num_classes:
        raise ConfigError(
            f"{config.data.name}: {config.data.train_split} has {train_source.num_classes} "
            f"classes and {config.data.eval_split} {setup.eval_source.num_classes}."
        )
    train_source = setup.in_memory(train_source, train=True)
    eval_source = setup.in_memory(setup.eval_source, train=False)
    setup = dataclasses.replace(setup, eval_source=eval_source)
    steps_per_epoch = len(train_source) / config.batch_size
    total = experiment.total_steps(config, len(train_source))
    eval_every = max(1.0, config.eval_every_epochs * steps_per_epoch)
    optimizer, schedule = setup.optimizer(total, steps_per_epoch)

    workdir = pathlib.Path(workdir)
    make_workdir(config, workdir)
    with locked(workdir), Checkpoints(workdir, config.checkpoints_to_keep) as checkpoints:
        save_config(config, setup.eval_source.class_names, workdir)
        environment.save(workdir)
        state = setup.initial_state(optimizer)
        state = checkpoints.resume(state) or state
        start = int(state.step)
        train_step, eval_step = setup.train_step(optimizer, schedule), setup.eval_step()
        with (
            MetricsLog(workdir / "metrics.jsonl", start) as log,
            ProgressLine(total, start) as progress,
            stop_requests() as stop_requested,
            jax.set_mesh(setup.mesh),  # the GPU kernels of the model ask what they are spread over
        ):
            say_start(progress, setup, train_source, start, total)

            def advance(state: TrainState, recorder: Recorder) -> tuple[TrainState, dict | None]:
                """Trains to the end, or until the recorder knows a bad step."""
                metrics = None
                steps = range(int(state.step) + 1, total + 1)
                with setup.train_batches(train_source, state) as batches:
                    for step, batch in zip(steps, recorder.timed(batches), strict=False):
                        state, step_metrics = train_step(state, batch)
                        recorder.add(step, step_metrics)
                        evaluate = step // eval_every > (step - 1) // eval_every or step == total
                        save = step % config.checkpoint_every_steps == 0 or stop_requested()
                        if evaluate or save:
                            recorder.flush()
                        if recorder.bad_step is not None:
                            break
                        evaluated = None
                        if evaluate:
                            metrics = evaluation.evaluate(
                                eval_step, state.variables, setup.eval_batches()
                            )
                            evaluated = recorder.evaluation(step, metrics)
                        # Amid bad steps there is nothing worth going back to.
                        if evaluate or (save and (recorder.nonfinite == 0 or stop_requested())):
                            checkpoints.save(step, state, evaluated)
                        if stop_requested() and step < total:
                            raise Interrupted(f"stopped after step {step}; the state is saved")
                return state, metrics

            while True:
                recorder = Recorder(log, progress, config, int(state.step), steps_per_epoch)
                state, metrics = advance(state, recorder)
                if recorder.bad_step is None:
                    break
                if int(state.order) >= config.nonfinite_rollbacks:
                    explain_nonfinite(setup, workdir, state, train_source, recorder.bad_step)
                state = roll_back(setup.initial_state(optimizer), state, checkpoints)
                log.rewind(int(state.step))
                progress.note(
                    f"step {recorder.bad_step}: loss or gradients were not finite "
                    f"{config.nonfinite_limit} times in a row; back to step {int(state.step)}, and "
                    "on with the data in another order"
                )
            if metrics is None and log.last and log.last["split"] == "eval":
                metrics = log.last  # the run had been finished before
            elif metrics is None:
                metrics = evaluation.evaluate(eval_step, state.variables, setup.eval_batches())
        best = checkpoints.resolve("best")
    return {
        **metrics,
        "step": max(start, total),
        "best_step": best,
        "seconds": time.monotonic() - began,
    }


def roll_back(fresh: TrainState, state: TrainState, checkpoints: Checkpoints) -> TrainState:
    """Returns the last saved state (or a fresh one), with the data in the next order."""
    saved = checkpoints.resume(fresh) or fresh
    order = state.order + 1
    return saved.replace(nonfinite=jax.numpy.zeros_like(saved.nonfinite), order=order)


@contextmanager
def stop_requests() -> Iterator[Any]:
    """Gives a function that says whether SIGTERM or SIGINT came; a second signal acts at once."""
    received = []
    previous = {}

    def handler(number, frame):
        received.append(number)
        for signum, old in previous.items():
            signal.signal(signum, old)

    for signum in (signal.SIGTERM, signal.SIGINT):
        try:
            previous[signum] = signal.signal(signum, handler)
        except ValueError:  # not the main thread, as in a notebook's: leave signals alone
            break
    try:
        yield lambda: bool(received)
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def explain_nonfinite(setup, workdir, state: TrainState, source, step: int) -> None:
    """Repeats a bad step, writes what is wrong with it, and raises NonFiniteError.

    Since that step nothing but the counters of the state has changed.
    """
    state = state.replace(step=jax.numpy.int32(step - 1))
    reader = setup.reader(source, state)
    batch = jax.device_put(reader.batches[step - 1], meshes.batch_sharding(setup.mesh))
    found = diagnose.diagnose(setup.model, setup.preprocess, state, batch, setup.config.seed)
    examples = reader.batches.indices(step - 1)
    path = diagnose.write_report(workdir, step, examples, found)
    raise diagnose.NonFiniteError(
        f"loss or gradients were not finite in {setup.config.nonfinite_limit} steps in a row, up "
        f"to step {step}; the first such tensor is: {found['first']}. {path} has all of them and "
        "the examples of the step; a lower config.optimizer.learning_rate or a warm-up often helps."
    )


def say_start(progress, setup, train_source, start: int, total: int) -> None:
    """Prints what runs where, before the first step compiles."""
    config = setup.config
    state = f"resuming at step {start} of {total}" if start else f"{total} steps"
    devices = collections.Counter(d.device_kind for d in setup.mesh.devices.flat)
    on = ", ".join(f"{n} x {kind}" for kind, n in devices.items())
    progress.note(
        f"{config.model.name} on {config.data.name}: {len(train_source)} training and "
        f"{len(setup.eval_source)} evaluation images, batch {config.batch_size}, {state}, on {on}"
    )
