"""A run's checkpoints, written asynchronously with Orbax; the latest ones and the best are kept.

A checkpoint is valid once it has checksums: after Orbax has committed it, the SHA-256 of each of
its files is written beside them.  Only a checkpoint whose files match their checksums is restored;
a truncated, bit-flipped or partly deleted one is skipped.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import bounded_files, saved_state
from densenet_jax.training.rundir.checksums import SEAL, seal, unsound
from densenet_jax.training.state import TrainState, initial_loss_scale

logger = logging.getLogger(__name__)

UNSOUND = "checkpoints_unsound"  # beside the folder of checkpoints


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, in which unusable metrics of one checkpoint do not hide the others."""

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the metrics of a checkpoint; None without any, or if they cannot be used."""
        try:
            found = super().metrics(step)
            if found is None or all(isinstance(v, int | float) for v in found.values()):
                return found
            error: Exception = ValueError("they are not numbers")
        except Exception as e:  # what Orbax and JSON raise has many types
            error = e
        logger.warning("The metrics of checkpoint %d cannot be used: %s.", step, _one_line(error))
        return None


class Checkpoints:
    """The folder `checkpoints` of a run; a context manager that waits for pending writes.

    Attributes:
      path: the folder.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 2,
        read_only: bool = False,
        *,
        score: Callable[[dict[str, float]], float],
    ) -> None:
        """Opens the checkpoints of a run.

        Args:
          workdir: the run's directory.
          keep: number of latest checkpoints to keep, in addition to the best one.
          read_only: whether this process alone opens them, only to read.  Otherwise all processes
            of a job must open them and call every method together.
          score: maps a checkpoint's metrics to a number that is larger for better checkpoints, see
            `Metric.score`.

        Raises:
          CheckpointError: they cannot be listed.
        """
        self.path = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._read_only, self._score = keep, read_only, score
        self._together = jax.process_count() > 1 and not read_only
        try:
            bounded_files.check_regular(self.path)
        except OSError as e:
            raise CheckpointError(f"{e.filename} cannot be read: {e.strerror}.") from e
        self._manager = self._open()
        self._finisher = concurrent.futures.ThreadPoolExecutor(1, "checksums")
        self._pending: concurrent.futures.Future[None] | None = None
        self._warned = -float("inf")  # time of the last warning

    def _open(self) -> ocp.CheckpointManager:
        """Returns Orbax's manager of the folder, which lists the checkpoints on disk.

        Raises:
          CheckpointError: they cannot be listed.
        """
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=self._score,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), best]
            ),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the training loop decides
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
        # Given now, since `metadata` needs a handler before the first save or restore names one.
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=processes)
        try:
            return _Manager(self.path, options=options, item_handlers=handler)
        except OSError:
            raise
        except Exception as e:  # what Orbax and JSON raise has many types
            raise CheckpointError(
                f"The checkpoints in {self.path} cannot be listed ({type(e).__name__}: "
                f"{_one_line(e)}): a _CHECKPOINT_METADATA there has been changed since it was "
                "written. Move that checkpoint away."
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._finisher.shutdown()
        try:
            self._manager.close()
        except Exception as e:  # the last write failed, but the checkpoint before it is intact
            self._warn(e)

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a state; returns as soon as its arrays are copied and may be donated.

        If the disk is full or gone, a single process warns, at most once a minute, and the run
        continues.  A job of several processes ends, because those that could write would wait for
        those that could not.

        Args:
          step: the state's step; if it has a checkpoint already, nothing is written.
          state: the state.
          metrics: of the evaluation at this step, {name: value}; None if there was none.  Only
            checkpoints with metrics can be the best.

        Raises:
          CheckpointError: this or the last checkpoint could not be written, in a job of several
            processes.
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
        except Exception as e:  # a full disk makes Orbax and TensorStore raise many types
            self._fail(step, e)
            return
        self._pending = self._finisher.submit(self._finish, step)

    def save_again(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts to replace the checkpoint of a step by one that has metrics.

        Args:
          step: the state's step.
          state: the state.
          metrics: of the evaluation at this step, {name: value}.
        """
        if step in self.steps():
            self._manager.delete(step)
        self.save(step, state, metrics)

    def wait(self) -> None:
        """Waits until the last save and its checksums are on disk, or it has failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _finish(self, step: int) -> None:
        """Waits until Orbax has written a checkpoint, then writes its checksums."""
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                seal(self.path / str(step))
        except Exception as e:
            self._fail(step, e)

    def _fail(self, step: int, error: Exception) -> None:
        """Removes the remains of a failed save, and reopens the folder.

        Raises:
          CheckpointError: there are several processes.
        """
        if self._together:
            raise CheckpointError(
                f"Checkpoint {step} could not be written to {self.path}: {_one_line(error)}. "
                "Start the same command again: the run continues from the checkpoint before it."
            ) from error
        self._warn(error)
        shutil.rmtree(self.path / str(step), ignore_errors=True)
        for left in self.path.glob(f"{step}.*tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a read-only disk; the next save tries again
            self._manager = self._open()

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            logger.warning(
                "A checkpoint could not be written to %s: %s. The run continues and tries again at "
                "the next checkpoint; the last good one is kept.",
                self.path,
                _one_line(error),
            )

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints on disk, intact or damaged, in ascending order."""
        self.wait()
        return sorted(self._manager.all_steps())

    def missing(self, step: int) -> str | None:
        """Returns None if a step's checkpoint is on disk, else a clause that says what is lost.

        Always None in a job of several processes, where a failed save has raised an error already.
        """
        steps = [s for s in self.steps() if (self.path / str(s) / SEAL).is_file()]
        if self._together or step in steps:
            return None
        last = f"the last checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint"
        return f"its state could not be saved to {self.path}; {last}"

    def resolve(self, which: str | int) -> int:
        """Returns the step of a checkpoint after checking that it is intact.

        Args:
          which: "latest" or "best", where damaged checkpoints are skipped with a warning; or a
            step, as a number or its digits.

        Raises:
          CheckpointError: there is no such checkpoint, or the given step is damaged.
        """
        if not self._together:
            return self._resolve(which)
        step, error = -1, CheckpointError(f"Process 0 found no checkpoint in {self.path}.")
        if jax.process_index() == 0:  # hashes the files, and decides for all processes
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
                f"There is no checkpoint {which!r} in {self.path}; choose 'latest', 'best' or a "
                f"step of {steps}."
            )
        order = sorted(steps, reverse=True)
        if which == "best":
            order.sort(key=lambda s: self._score(self._manager.metrics(s) or {}), reverse=True)
        reasons = []
        for step in order:
            damage = unsound(self.path / str(step))
            if damage is None:
                return step
            reasons.append(f"{step}: {damage}")
            logger.warning("Checkpoint %d in %s is not used: %s.", step, self.path, damage)
        if not steps:
            raise CheckpointError(f"There is no checkpoint in {self.path}.")
        raise CheckpointError(
            f"There is no intact checkpoint in {self.path} ({'; '.join(reasons[:3])}). Nothing was "
            "changed: restore their files from a copy, or choose another --workdir to start anew."
        )

    def resume(self, target: TrainState) -> TrainState | None:
        """Returns the latest intact state; None: the run has not completed a checkpoint yet.

        Later checkpoints, which are damaged or incomplete, make room for new ones of the same
        steps: they are moved to the folder `checkpoints_unsound` of the run.  Nothing is deleted.

        Args:
          target: the shapes, types and shardings of the state, see `run_state.restore_target`.

        Raises:
          CheckpointError: the checkpoint is of another model, optimiser or version; or there are
            several checkpoints and none can be used.
        """
        step: int | None
        try:
            step = self.resolve("latest")
        except CheckpointError:
            # One alone is what a run leaves that was killed while it wrote its first checkpoint.
            if len(self.steps()) > 1:
                raise
            step = None
        state = None if step is None else self._restore(step, target)
        if jax.process_index() == 0:
            for later in self.steps():
                if step is None or later > step:
                    self._set_aside(later)
        if self._together:
            multihost_utils.sync_global_devices("later checkpoints are removed")
        self._manager.reload()
        return state

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint (a link itself, not its target) out of the folder of checkpoints."""
        folder = self.path.parent / UNSOUND
        folder.mkdir(exist_ok=True)
        free = (
            f"{step}{suffix}"
            for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
        )
        name = next(name for name in free if not os.path.lexists(folder / name))
        os.rename(self.path / str(step), folder / name)
        logger.warning("Checkpoint %d was moved to %s.", step, folder / name)

    def restore(self, which: str | int, target: Any) -> tuple[int, Any]:
        """Returns a checkpoint's step and its state.

        Args:
          which: "latest", "best" or a step, see `resolve`.
          target: a state, or a tree of `jax.ShapeDtypeStruct` with shardings; the result has its
            structure, shapes, types and shardings.

        Raises:
          CheckpointError: the checkpoint does not exist, is damaged, or is of another model,
            optimiser or version.
        """
        step = self.resolve(which)
        return step, self._restore(step, target)

    def _restore(self, step: int, target: Any) -> Any:
        """Returns a state; no content of the files, whoever wrote them, raises another error.

        Raises:
          CheckpointError: see `restore`.
        """
        try:
            return self._restored(step, target)
        except CheckpointError:
            raise
        except Exception as e:  # what Orbax, TensorStore and JSON raise has many types
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} cannot be read ({type(e).__name__}: "
                f"{_one_line(e)}): its files have been changed since they were written. Choose "
                "another checkpoint, or restore the files from a copy."
            ) from e

    def _restored(self, step: int, target: Any) -> Any:
        said = self._manager.metadata(step)
        number = (said.custom_metadata or {}).get("format", 0)
        if number > saved_state.FORMAT:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} was written by a newer version of densenet_jax "
                f"(format {number}; this one reads up to {saved_state.FORMAT}): update the package."
            )
        tree = said.item_metadata.tree
        if isinstance(target, TrainState):
            scaled = any(name.startswith("loss_scale/") for name in saved_state.names(tree))
            if scaled != (target.loss_scale is not None):
                return self._in_another_type(step, target, scaled)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        try:
            wanted = saved_state.request(tree, abstract)
        except ValueError as e:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} is of another model or optimizer than the "
                f"configuration describes: {e}."
            ) from e
        found = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return saved_state.from_stored(found, target)

    def _in_another_type(self, step: int, target: TrainState, scaled: bool) -> TrainState:
        """Returns a state to go on from in float16, or after float16, in another type.

        Args:
          step, target: see `restore`.
          scaled: whether the checkpoint has a scale of the loss; the target does what it does not.
        """
        scale = initial_loss_scale()
        here = target.step.sharding
        if scaled:
            there = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), scale
            )
            return self._restored(step, target.replace(loss_scale=there)).replace(loss_scale=None)
        found = self._restored(step, target.replace(loss_scale=None))
        return found.replace(loss_scale=jax.device_put(jax.device_get(scale), here))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
