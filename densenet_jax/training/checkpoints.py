"""A run's checkpoints: Orbax, asynchronous; the latest ones and the best are kept.

A checkpoint counts once it is sealed: when Orbax has committed it, the SHA-256 of its files is
written beside them.  Only what matches its seal is restored, so a truncated, bit-flipped or
half-deleted checkpoint is passed over, never loaded.
"""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.state import TrainState

logger = logging.getLogger(__name__)
SEAL = "SHA256SUMS"  # `sha256sum -c` reads it


class Checkpoints:
    """The folder `checkpoints` of a run; a context manager that waits for pending writes."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2, read_only: bool = False):
        """Opens the checkpoints of a run.

        Args:
          workdir: the run's directory.
          keep: number of latest checkpoints to keep; the best by top-1 is kept besides.
        """
        self.path = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._read_only = keep, read_only
        self._manager = self._open()
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
        self._pending: concurrent.futures.Future | None = None
        self._warned = -float("inf")

    def _open(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_top1,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), best]
            ),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
        )
        return ocp.CheckpointManager(self.path, options=options)

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

        A disk that is full or gone is warned of, at most once a minute, and the run goes on.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state.present()), metrics=metrics)
        except Exception as e:  # Orbax and TensorStore raise many kinds for one full disk
            self._fail(step, e)
            return
        self._pending = self._sealer.submit(self._finish, step)

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
        self._warn(error)
        shutil.rmtree(self.path / str(step), ignore_errors=True)
        for left in self.path.glob(f"{step}.*tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        self._manager = self._open()

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            reason = " ".join(str(error).split())[:200]
            logger.warning(
                "A checkpoint could not be written to %s: %s. The run goes on and tries again; "
                "the last good checkpoint is kept.",
                self.path,
                reason,
            )

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints on disk, sound or not."""
        self.wait()
        return sorted(self._manager.all_steps())

    def resolve(self, which: str | int) -> int:
        """Returns the step of the `latest` or `best` sound checkpoint, or `which` if it is there.

        Raises:
          CheckpointError: there is none.
        """
        steps = self.steps()
        if str(which).isdigit() and int(which) in steps:
            return int(which)
        if which not in ("latest", "best"):
            raise CheckpointError(
                f"There is no checkpoint {which!r} in {self.path}; "
                f"it has 'latest', 'best' and {steps}."
            )
        order = sorted(steps, reverse=True)
        if which == "best":
            order.sort(key=lambda s: _top1(self._manager.metrics(s) or {"top1": -1}), reverse=True)
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
        self._manager.reload()
        return state

    def restore(self, step: int, target: Any) -> Any:
        """Returns the state saved at a step, with the shapes, types and shardings of `target`.

        Args:
          target: a state, or its `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: it is damaged, or was saved by another model.
        """
        damage = unsound(self.path / str(step))
        if damage is not None:
            raise CheckpointError(f"Checkpoint {step} in {self.path} cannot be used: {damage}.")
        return self._restore(step, target)

    def _restore(self, step: int, target: Any) -> Any:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target.present())
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            return target.replace(**found)
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} is of another model, or of another version of "
                f"densenet_jax: {str(e).strip().splitlines()[0]}"
            ) from e


def seal(folder: pathlib.Path) -> None:
    """Writes the SHA-256 of every file of a folder into it."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items())]
    temporary = folder / f"{SEAL}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / SEAL)


def unsound(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a sealed folder; None: it is as it was sealed."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return f"it was never finished (it has no {SEAL})"
    sealed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = _digests(folder)
    missing, changed = sealed.keys() - found.keys(), []
    changed = sorted(n for n in sealed.keys() & found.keys() if sealed[n] != found[n])
    if missing:
        return f"{sorted(missing)[0]} is missing"
    return f"{changed[0]} is damaged (its checksum differs)" if changed else None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(SEAL):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]
