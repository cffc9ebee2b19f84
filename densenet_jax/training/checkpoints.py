"""A run's checkpoints: Orbax, asynchronous; the latest ones and the best are kept."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.state import TrainState


class Checkpoints:
    """The folder `checkpoints` of a run; a context manager that waits for pending writes."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2, read_only: bool = False):
        """Opens the checkpoints of a run.

        Args:
          workdir: the run's directory.
          keep: number of latest checkpoints to keep; the best by top-1 is kept besides.
        """
        policies = ocp.checkpoint_managers
        self.path = pathlib.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            best_fn=_top1,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            # The loop decides when to save.
            save_decision_policy=policies.FixedIntervalPolicy(1),
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a state; returns when its arrays are copied and may be donated."""
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def resolve(self, which: str | int) -> int:
        """Returns the step of the `latest` or `best` checkpoint, or `which` if it is there.

        Raises:
          CheckpointError: there is none.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise CheckpointError(f"There is no checkpoint in {self.path}.")
        if which == "latest":
            return steps[-1]
        if which == "best":
            with_metrics = [s for s in steps if self._manager.metrics(s)]
            if not with_metrics:
                return steps[-1]
            return self._manager.best_step()
        if str(which).isdigit() and int(which) in steps:
            return int(which)
        raise CheckpointError(
            f"There is no checkpoint {which!r} in {self.path}; it has 'latest', 'best' and {steps}."
        )

    def restore(self, step: int, target: Any) -> Any:
        """Returns the state saved at a step, with the shapes, types and shardings of `target`.

        Args:
          target: a state, or its `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: it was saved by another model or is damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise CheckpointError(
                f"Checkpoint {step} in {self.path} does not fit this model, or is damaged: "
                f"{str(e).strip().splitlines()[0]}"
            ) from e


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]
