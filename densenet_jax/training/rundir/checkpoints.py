"""A run's checkpoints: Orbax, asynchronous; the latest ones and the best are kept.

A checkpoint counts once it is sealed: when Orbax has committed it, the SHA-256 of its files is
written beside them.  Only what matches its seal is restored, so a truncated, bit-flipped or
half-deleted checkpoint is passed over, never loaded.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import saved_state
from densenet_jax.training.rundir.checksums import SEAL, seal, unsound
from densenet_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """The folder `checkpoints` of a run; a context manager that waits for pending writes."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 2,
        read_only: bool = False,
        *,
        score: Callable[[dict[str, float]], float],
    ):
        """Opens the checkpoints of a run.

        Args:
          workdir: the run's directory.
          keep: number of latest checkpoints to keep; the best is kept besides.
          read_only: only to be read, by this process alone.  Else all processes of a job open
            them, and call each method together.
          score: maps a checkpoint's metrics to a number that is larger for better ones.
        """
        self.path = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._read_only, self._score = keep, read_only, score
        self._together = jax.process_count() > 1 and not read_only
        self._manager = self._open()
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
        self._pending: concurrent.futures.Future | None = None
        self._warned = -float("inf")

    def _open(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=self._score,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), best]
            ),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
        )
        processes = ocp.options.MultiprocessingOptions()
        if self._read_only:
            own = jax.process_index()
            processes = ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
            )
            options = dataclasses.replace(options, multiprocessing_options=processes, create=False)
        # Known before it is used, to describe arrays.
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=processes)
        return ocp.CheckpointManager(self.path, options=options, item_handlers=handler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self._sealer.shutdown()
        try:
            self._manager.close()
        except Exception as e:  # the last write failed: said, and the one before is there
            self._warn(e)

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a state; returns when its arrays are copied and may be donated.

        A disk that is full or gone is warned of, at most once a minute, and the run goes on; of
        several processes all end, as those that could write wait for those that could not.

        Raises:
          CheckpointError: the last one could not be written, and there are several processes.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.StandardSave(saved_state.to_stored(state)),
                metrics=metrics,
                custom_metadata={"format": saved_state.FORMAT},
            )
        except Exception as e:  # Orbax and TensorStore raise many kinds for one full disk
            self._fail(step, e)
            return
        self._pending = self._sealer.submit(self._finish, step)

    def save_again(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts to write a state that was saved before, now with metrics."""
        if step in self.steps():
            self._manager.delete(step)
        self.save(step, state, metrics)

    def wait(self) -> None:
        """Waits until the last save is on disk, and sealed, or has failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                seal(self.path / str(step))
        except Exception as e:
            self._fail(step, e)

    def _fail(self, step: int, error: Exception) -> None:
        """Removes what a failed save left, and starts afresh with what is on disk."""
        if self._together:
            raise CheckpointError(
                f"Checkpoint {step} could not be written to {self.path}: {_one_line(error)}. "
                "Started again, the run goes on from the one before."
            ) from error
        self._warn(error)
        shutil.rmtree(self.path / str(step), ignore_errors=True)
        for left in self.path.glob(f"{step}.*tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # a read-only disk cannot be tidied: the next save tries
            self._manager = self._open()

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            logger.warning(
                "A checkpoint could not be written to %s: %s. The run goes on and tries again; "
                "the last good checkpoint is kept.",
                self.path,
                _one_line(error),
            )

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints on disk, sound or not."""
        self.wait()
        return sorted(self._manager.all_steps())

    def missing(self, step: int) -> str | None:
        """Returns what is lost if a step's checkpoint could not be written; None: it is on disk.

        Of several processes one knows, and has raised an error if it could not.
        """
        steps = [s for s in self.steps() if (self.path / str(s) / SEAL).is_file()]
        if self._together or step in steps:
            return None
        last = f"the last checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint"
        return f"its state could not be saved to {self.path}; {last}"

    def resolve(self, which: str | int) -> int:
        """Returns the step of the `latest` or `best` sound checkpoint, or `which` if it is sound.

        Raises:
          CheckpointError: there is none, or the one that was asked for is damaged.
        """
        if not self._together:
            return self._resolve(which)
        step, error = -1, CheckpointError(f"Process 0 found no checkpoint in {self.path}.")
        if jax.process_index() == 0:  # files are hashed once, and all processes take the same
            try:
                step = self._resolve(which)
            except CheckpointError as e:
                error = e
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            raise error
        return step

    def _resolve(self, which: str | int) -> int:
        steps = self.steps()
        if str(which).isdigit() and int(which) in steps:
            damage = unsound(self.path / str(which))
            if damage is not None:
                raise CheckpointError(
                    f"Checkpoint {which} in {self.path} cannot be used: {damage}."
                )
            return int(which)
        if which not in ("latest", "best"):
            raise CheckpointError(
                f"There is no checkpoint {which!r} in {self.path}; "
                f"it has 'latest', 'best' and {steps}."
            )
        order = sorted(steps, reverse=True)
        if which == "best":
            order.sort(key=lambda s: self._score(self._manager.metrics(s) or {}), reverse=True)
        for step in order:
            damage = unsound(self.path / str(step))
            if damage is None:
                return step
            logger.warning("Checkpoint %d in %s is not used: %s.", step, self.path, damage)
        raise CheckpointError(f"There is no {'sound ' if steps else ''}checkpoint in {self.path}.")

    def resume(self, target: TrainState) -> TrainState | None:
        """Returns the latest sound state, and removes what lies beyond it; None: a fresh start."""
        try:
            step = self.resolve("latest")
        except CheckpointError:
            step = None
        state = None if step is None else self._restore(step, target)
        if jax.process_index() == 0:
            for later in self.steps():
                if step is None or later > step:
                    shutil.rmtree(self.path / str(later))
        if self._together:
            multihost_utils.sync_global_devices("later checkpoints are gone")
        self._manager.reload()
        return state

    def restore(self, which: str | int, target: Any) -> tuple[int, Any]:
        """Returns a checkpoint's step and state, with the shapes, types, shardings of `target`.

        Args:
          which: as for `resolve`.
          target: a state, or its `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: there is none, it is damaged, or was saved by another model.
        """
        step = self.resolve(which)
        return step, self._restore(step, target)

    def _restore(self, step: int, target: Any) -> Any:
        said = self._manager.metadata(step)
        number = (said.custom_metadata or {}).get("format", 0)
        if number > saved_state.FORMAT:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} was written by a newer version of densenet_jax "
                f"(format {number}; this one reads up to {saved_state.FORMAT}): update it."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        try:
            wanted = saved_state.request(said.item_metadata.tree, abstract)
            found = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} is of another model or optimizer than the "
                f"configuration describes: {str(e).strip().splitlines()[0]}."
            ) from e
        return saved_state.from_stored(found, target)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
