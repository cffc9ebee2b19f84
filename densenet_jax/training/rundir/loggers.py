"""A run's records where people look at them: TensorBoard, Weights & Biases, or any listener.

metrics.jsonl is always written, and is the truth: a run that goes on gives each listener what the
file holds, so that nobody has a step twice, and a logger may be chosen when half the run is over.
"""

import importlib.util
import os
import pathlib
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import ml_collections

from densenet_jax.training.errors import ConfigError

FLUSH_SECONDS = 10.0
Record = dict[str, Any]


class Listener(Protocol):
    """Whoever is told of a run's records; what it raises is warned of and harms no run."""

    def restart(self, records: Sequence[Record]) -> None:
        """The run begins, or goes on: these are its records so far, any other is forgotten."""

    def write(self, record: Record) -> None:
        """There is a new record, as in metrics.jsonl."""

    def close(self, failed: bool) -> None:
        """The run has ended, or stops."""


def open_loggers(
    names: Sequence[str], workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> list[Listener]:
    """Returns the loggers with the given names, of LOGGERS.

    Raises:
      ConfigError: W&B lets nobody in.
    """
    return [LOGGERS[name](workdir, config) for name in dict.fromkeys(_split(names))]


def check(names: Sequence[str], *, installed: bool = False) -> None:
    """Raises ConfigError if there is no such logger, or if its package must be and is not there."""
    for name in _split(names):
        if name not in LOGGERS:
            raise ConfigError(
                f"config.loggers has {name!r}; there are {', '.join(LOGGERS)} (metrics.jsonl is "
                "always written)."
            )
        package = LOGGERS[name].package
        if installed and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"config.loggers has {name!r}, which needs the package {package}: "
                f"pip install {package}"
            )


def _split(names: Sequence[str]) -> list[str]:
    """On a command line the names may stand in one word: --config.loggers=tensorboard,wandb."""
    return [part for name in names for part in str(name).split(",")]


def scalars(record: Record) -> dict[str, float]:
    """Returns the numbers of a record as {"train/loss": ...}; what was not finite is left out."""
    place = ("step", "split")
    return {
        f"{record['split']}/{name}": value
        for name, value in record.items()
        if name not in place and isinstance(value, int | float)
    }


class TensorBoard:
    """Event files in WORKDIR/tensorboard, for `tensorboard --logdir=WORKDIR`.

    Records are written from the thread that hands them over: tensorboardX's SummaryWriter has a
    thread and a queue of its own, and waits for ever once that thread has met a full disk.
    """

    package = "tensorboardX"

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict):
        self._folder = workdir / "tensorboard"
        self._writer = None

    def restart(self, records: Sequence[Record]) -> None:
        """Writes all records anew, and removes files but the last, where a TensorBoard may read."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close(failed=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        older = sorted(self._folder.glob("events.out.tfevents.*"))
        # A suffix, as two files of one second would be the same; TensorBoard reads in their order.
        suffix = f".{time.time_ns():020}"
        self._writer = EventsWriter(str(self._folder / "events"), suffix)
        # Tells a TensorBoard to forget what it has read before.
        session = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=session))
        last = records[-1]["seconds"] if records else 0.0
        for record in records:
            self._event(record, time.time() - last + record["seconds"])
        self._flush()
        for path in older[:-1]:
            path.unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        self._event(record, time.time())
        if time.monotonic() - self._flushed > FLUSH_SECONDS or record["split"] != "train":
            self._flush()

    def close(self, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()

    def _event(self, record: Record, wall_time: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=v) for tag, v in scalars(record).items()]
        event = Event(wall_time=wall_time, step=record["step"], summary=Summary(value=values))
        self._writer.write_event(event)

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


class WandB:
    """A run of Weights & Biases with the identity kept in WORKDIR/wandb.

    W&B's own environment variables decide the rest: WANDB_MODE=offline, WANDB_PROJECT (default:
    densenet_jax), WANDB_ENTITY, ...  What it was given it never gives back: steps that a run
    repeats are left out, and after a rollback those up to the step where the numbers went wrong.
    """

    package = "wandb"

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict):
        import wandb

        folder = workdir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        identity, self._cursor = folder / "run_id", folder / "last_step"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "densenet_jax"),
                name=os.environ.get("WANDB_NAME", workdir.resolve().name),
                id=identity.read_text().strip(),
                resume="allow",
                dir=str(workdir),
                config=config.to_dict(),
                allow_val_change=True,
                settings=wandb.Settings(console="off"),  # the progress line is ours
            )
        except wandb.errors.Error as e:
            raise ConfigError(
                f"Weights & Biases: {str(e).rstrip('.')}; WANDB_MODE=offline keeps the records in "
                f"{folder}, for `wandb sync` some day."
            ) from None
        # A server says what it has; offline only we know.
        self._next = self._run.step
        if self._run.offline and self._cursor.exists():
            self._next = int(self._cursor.read_text()) + 1

    def restart(self, records: Sequence[Record]) -> None:
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Hands over a record, unless W&B has later ones; of one step there may be several."""
        if record["step"] < self._next:
            return
        self._run.log(scalars(record), step=record["step"])
        self._next = record["step"]
        self._cursor.write_text(str(record["step"]))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}
