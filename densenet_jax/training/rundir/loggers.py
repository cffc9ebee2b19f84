"""Loggers that receive a run's records: TensorBoard, Weights & Biases, or any listener.

metrics.jsonl is always written, and the others follow it: a resumed run sends each listener all
records of the file.  So no listener has a step twice, and a logger can be added in the middle of a
run.
"""

import importlib.util
import os
import pathlib
import time
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import ml_collections

from densenet_jax.training.errors import ConfigError

FLUSH_SECONDS = 10.0
# A line of metrics.jsonl: {"step", "epoch", "split": "train" or "eval", "seconds", metrics...}.
Record = dict[str, Any]


class Listener(Protocol):
    """Receives a run's records.  Its exceptions are logged as warnings; the run continues."""

    def restart(self, records: Sequence[Record]) -> None:
        """Called when the run starts, resumes or is rolled back: these are now all its records."""

    def write(self, record: Record) -> None:
        """Called for each new record of metrics.jsonl."""

    def close(self, failed: bool) -> None:
        """Called at the end; `failed` says whether an exception, such as a stop, ended the run."""


class Logger(Listener, Protocol):
    """A listener that config.loggers can name.

    Attributes:
      package: the Python package that it needs.
    """

    package: ClassVar[str]

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
        """Opens the logger of the run in a directory."""


def open_loggers(
    names: Sequence[str], workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> list[Listener]:
    """Returns the loggers that a configuration names.

    Args:
      names: keys of `LOGGERS`.
      workdir: the run's directory.
      config: the run's configuration.

    Raises:
      ConfigError: Weights & Biases refuses the connection, for example without a login.
    """
    return [LOGGERS[name](workdir, config) for name in dict.fromkeys(_split(names))]


def check(names: Sequence[str], *, installed: bool = False) -> None:
    """Checks the names of loggers.

    Args:
      names: of the loggers.
      installed: whether to check that their packages are installed, too.

    Raises:
      ConfigError: a logger does not exist, or its package is not installed.
    """
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
    """Splits names at commas, since a flag holds them in one word: tensorboard,wandb."""
    return [part for name in names for part in str(name).split(",")]


def scalars(record: Record) -> dict[str, float]:
    """Returns the numbers of a record, {"train/loss": 0.5, ...}; non-finite ones are left out."""
    place = ("step", "split")
    return {
        f"{record['split']}/{name}": value
        for name, value in record.items()
        if name not in place and isinstance(value, int | float)
    }


class TensorBoard:
    """Writes event files to WORKDIR/tensorboard, for `tensorboard --logdir=WORKDIR`.

    Records are written in the caller's thread.  tensorboardX's SummaryWriter would use a thread and
    a queue of its own, and wait for ever once that thread has failed because of a full disk.
    """

    package: ClassVar[str] = "tensorboardX"

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
        self._folder = workdir / "tensorboard"
        self._writer: Any = None

    def restart(self, records: Sequence[Record]) -> None:
        """Writes all records to a new file, and removes older ones.

        The latest of the older files is kept, as a running TensorBoard may be reading it.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close(failed=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        older = sorted(self._folder.glob("events.out.tfevents.*"))
        # The suffix makes the names of two files of the same second different; TensorBoard reads
        # files in the order of their names.
        suffix = f".{time.time_ns():020}"
        self._writer = EventsWriter(str(self._folder / "events"), suffix)
        # Tells TensorBoard to discard what it has read before.
        session = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=session))
        last = records[-1]["seconds"] if records else 0.0
        for record in records:
            self._event(record, time.time() - last + record["seconds"])
        self._flush()
        for path in older[:-1]:
            path.unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        """Writes a record; an evaluation's, or after some seconds any, is flushed to disk."""
        self._event(record, time.time())
        if time.monotonic() - self._flushed > FLUSH_SECONDS or record["split"] != "train":
            self._flush()

    def close(self, failed: bool) -> None:
        """Closes the file."""
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
    """Sends records to one W&B run, whose identity is kept in WORKDIR/wandb.

    W&B's own environment variables control the rest: WANDB_MODE=offline, WANDB_PROJECT (default:
    densenet_jax), WANDB_ENTITY, ...  W&B cannot delete steps that it has received.  So steps that a
    run repeats are not sent again; after a rollback, these are the steps up to the one where the
    numbers became non-finite.
    """

    package: ClassVar[str] = "wandb"

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
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
                settings=wandb.Settings(console="off"),  # W&B would capture the progress line
            )
        except wandb.errors.Error as e:
            raise ConfigError(
                f"Weights & Biases: {str(e).rstrip('.')}; with WANDB_MODE=offline the records are "
                f"kept in {folder}, for a later `wandb sync`."
            ) from None
        # A server knows the last step that it received; an offline run does not.
        self._next = self._run.step
        if self._run.offline and self._cursor.exists():
            self._next = int(self._cursor.read_text()) + 1

    def restart(self, records: Sequence[Record]) -> None:
        """Sends those of the records that W&B does not have yet."""
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Sends a record unless W&B has later ones; a step may have several records."""
        if record["step"] < self._next:
            return
        self._run.log(scalars(record), step=record["step"])
        self._next = record["step"]
        self._cursor.write_text(str(record["step"]))

    def close(self, failed: bool) -> None:
        """Ends this part of the W&B run, and marks it as failed or finished."""
        self._run.finish(exit_code=int(failed))


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}
