"""train_and_evaluate: the loop that holds a run together, from its directory and back."""

import collections
import json
import os
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
from densenet_jax.training import experiment
from densenet_jax.training.checkpoints import Checkpoints
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.metrics_log import MetricsLog
from densenet_jax.training.progress import ProgressLine
from densenet_jax.training.state import TrainState

# Steps that may be under way: more would only pile up batches on the device.
MAX_PENDING = 16
# What decides a run's numbers from its first step; another value is another run.
FIXED = ("model", "seed", "batch_size", "data.name", "data.train_split", "data.image_size")


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
    train_source = sources.load(config.data.name, config.data.train_split, config.data.data_dir)
    if train_source.num_classes != setup.eval_source.num_classes:
        raise ConfigError(
            f"{config.data.name}: {config.data.train_split} has {train_source.num_classes} "
            f"classes and {config.data.eval_split} {setup.eval_source.num_classes}."
        )
    steps_per_epoch = len(train_source) / config.batch_size
    total = experiment.total_steps(config, len(train_source))
    eval_every = max(1.0, config.eval_every_epochs * steps_per_epoch)
    optimizer, schedule = setup.optimizer(total, steps_per_epoch)

    workdir = pathlib.Path(workdir)
    save_config(config, workdir)
    state = setup.initial_state(optimizer)
    with Checkpoints(workdir, config.checkpoints_to_keep) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.restore(start, state)
        with (
            MetricsLog(workdir / "metrics.jsonl", start) as log,
            ProgressLine(total, start) as progress,
            stop_requests() as stop_requested,
        ):
            say_start(progress, setup, train_source, start, total)
            train_step = setup.train_step(optimizer, schedule)
            eval_step = setup.eval_step()
            recorder = Recorder(log, progress, config, steps_per_epoch, began)
            metrics = log.last  # already finished: nothing below runs
            for step, batch in zip(
                range(start + 1, total + 1), setup.train_batches(train_source, start), strict=False
            ):
                state, step_metrics = train_step(state, batch)
                recorder.add(step, step_metrics)
                evaluated = None
                if step // eval_every > (step - 1) // eval_every or step == total:
                    recorder.flush()
                    metrics = evaluation.evaluate(eval_step, state, setup.eval_batches())
                    evaluated = recorder.evaluation(step, metrics)
                if evaluated or step % config.checkpoint_every_steps == 0 or stop_requested():
                    recorder.flush()
                    checkpoints.save(step, state, evaluated)
                if stop_requested() and step < total:
                    raise Interrupted(f"stopped after step {step}; the state is saved")
        best = checkpoints.resolve("best")
    return {
        **metrics,
        "step": max(start, total),
        "best_step": best,
        "seconds": time.monotonic() - began,
    }


class Recorder:
    """Writes steps' metrics once the device has computed them, without making it wait."""

    def __init__(self, log, progress, config, steps_per_epoch: float, began: float):
        self._log, self._progress, self._config = log, progress, config
        self._steps_per_epoch, self._began = steps_per_epoch, began
        self._pending = collections.deque()
        self._last = None  # (step, time) of the last record

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._pending.append((step, metrics))
        while self._pending and (
            len(self._pending) > MAX_PENDING or self._pending[0][1]["loss"].is_ready()
        ):
            self._write(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for all steps under way and writes them."""
        while self._pending:
            self._write(*self._pending.popleft())

    def evaluation(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes the metrics of an evaluation; returns them as a checkpoint keeps them."""
        self._record(step, "eval", metrics)
        self._progress.note(
            f"step {step}: top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}, "
            f"loss {metrics['loss']:.4f} on {metrics['examples']} examples"
        )
        self._last = None  # the evaluation's time is not training time
        return {name: metrics[name] for name in ("loss", "top1", "top5")}

    def _write(self, step: int, metrics: dict[str, jax.Array]) -> None:
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        if self._last is None:
            self._last = (step - 1, self._began if step == 1 else now)
        elapsed = max(now - self._last[1], 1e-9)
        speed = (step - self._last[0]) * self._config.batch_size / elapsed
        if step % self._config.log_every == 0:
            self._record(step, "train", {**metrics, "images_per_second": speed})
            self._last = (step, now)
        self._progress.update(
            step, step / self._steps_per_epoch, {**metrics, "images_per_second": speed}
        )

    def _record(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        record = {"step": step, "epoch": step / self._steps_per_epoch, "split": split, **metrics}
        if jax.process_index() == 0:
            self._log.write({**record, "seconds": time.monotonic() - self._began})


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


def save_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json; refuses a directory that holds another run."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        for key in FIXED:
            was, now = _lookup(old, key), _lookup(new, key)
            if was != now:
                raise ConfigError(
                    f"{workdir} holds a run with config.{key}={was}, not {now}; "
                    "give another --workdir, or remove that one."
                )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigError(f"--workdir={workdir} cannot be written: {e}.") from None


def _lookup(tree: dict, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


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


def restored_state(setup: experiment.Experiment, checkpoints: Checkpoints, step: int) -> TrainState:
    """Returns a run's saved state, for evaluation."""
    optimizer, _ = setup.optimizer(1, 1.0)
    return checkpoints.restore(step, setup.initial_state(optimizer))
