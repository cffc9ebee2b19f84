"""The training loop: steps, the evaluations and checkpoints that are due after them, rollbacks."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn, cast

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from densenet_jax.data.reading.batches import TrainBatches
from densenet_jax.data.sources.source import Source
from densenet_jax.training import batches, dispatch, nonfinite, run_state, run_steps
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.early_stopping import EarlyStopping
from densenet_jax.training.rundir.metrics_log import MetricsLog
from densenet_jax.training.rundir.progress import ProgressLine
from densenet_jax.training.rundir.recorder import Recorder
from densenet_jax.training.state import TrainState


class Interrupted(Exception):
    """A signal asked the run to stop.

    The state has been saved by then; if that failed, the message says so.
    """


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run, in steps.

    Attributes:
      total: steps of the whole run.
      epoch: steps per epoch; a fraction where the batch size does not divide the data.
      evaluation: steps from one evaluation to the next; may be a fraction, too.
    """

    total: int
    epoch: float
    evaluation: float

    def evaluates_at(self, step: int) -> bool:
        """Returns whether an evaluation is due after a step."""
        return step // self.evaluation > (step - 1) // self.evaluation or step == self.total


def latest_state(
    setup: Experiment, optimizer: optax.GradientTransformation, checkpoints: Checkpoints
) -> TrainState:
    """Returns the state of the latest intact checkpoint, or a fresh one if there is none.

    Args:
      setup: the experiment.
      optimizer: its optimiser.
      checkpoints: the run's checkpoints; those after the latest intact one are removed.
    """
    saved = checkpoints.resume(run_state.restore_target(setup, optimizer))
    return run_state.initial_state(setup, optimizer) if saved is None else saved


class Trainer:
    """Trains a state to the end of its run.

    Attributes:
      best: the best evaluation since the process started (or since the last rollback); None before
        the first one.
      step: the last step that was taken.
    """

    def __init__(
        self,
        setup: Experiment,
        source: Source,
        length: Length,
        optimizer: optax.GradientTransformation,
        schedule: optax.Schedule,
        *,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        log: MetricsLog,
        progress: ProgressLine,
        stop_requested: Callable[[], bool],
    ) -> None:
        """Builds the training and evaluation steps, which compile when `run` first calls them.

        Args:
          setup: configuration, task, model, mesh and evaluation split, see `experiment.build`.
          source: the training split.
          length: number of steps in the run, in an epoch and between evaluations.
          optimizer: the Optax optimiser, see `run_steps.optimizer`.
          schedule: its learning rate by step, which is written to the metrics.
          workdir: the run's directory, where nonfinite.json is written.
          checkpoints: the run's checkpoints, opened for writing.
          log: the run's metrics.jsonl.
          progress: the progress line.
          stop_requested: returns whether to save and stop after the current step; it is called
            once per step, and before each evaluation batch.
        """
        self._setup, self._source, self._length = setup, source, length
        self._workdir, self._checkpoints = workdir, checkpoints
        self._log, self._progress = log, progress
        self._stop_requested = stop_requested
        self._optimizer = optimizer
        self._train_step = run_steps.train_step(setup, optimizer, schedule)
        if setup.config.steps_per_dispatch > 1:
            self._train_step = run_steps.many_steps(setup, self._train_step)
        self._eval_step = run_steps.eval_step(setup)
        self._last: Evaluated | None = None
        self.best: Evaluated | None = None
        self.step = 0
        self._patience = EarlyStopping(setup.config.early_stopping, setup.task.best)
        self._patience.recount(log.evaluations)

    def run(self, state: TrainState) -> dict[str, Any]:
        """Trains to the end and returns the metrics of the last evaluation.

        Args:
          state: the state to start from, see `latest_state`; its buffers are donated.

        Returns:
          `eval_loop.evaluate`'s metrics.  If the run was already complete, they are the last
          record of metrics.jsonl, which also has "step", "epoch", "split" and "seconds".

        Raises:
          Interrupted: a stop was requested; the state has been saved.
          NonFiniteError: loss or gradients stayed non-finite after all allowed rollbacks.
        """
        config = self._setup.config
        while True:
            recorder = Recorder(
                self._log,
                self._progress,
                config,
                self._setup.task,
                int(state.step),
                self._length.epoch,
            )
            state = self._advance(state, recorder)
            if recorder.bad_step is None:
                break
            if int(state.order) >= config.nonfinite_rollbacks:
                self._explain_nonfinite(state, recorder.bad_step)
            state = self._roll_back(state, recorder.bad_step)
        if self._last is not None:
            return self._last.metrics
        # The run was already complete when it was started.
        last = self._log.evaluations[-1] if self._log.evaluations else self._log.last
        return cast(dict[str, Any], last)

    def _advance(self, state: TrainState, recorder: Recorder) -> TrainState:
        """Trains to the end, or until the recorder reports too many non-finite steps in a row."""
        start = int(state.step)
        self.step = start
        if start and self._lacks_evaluation(start):
            self._evaluate_late(state, recorder)
        if self._patience.over:
            self._progress.note(f"{self._patience}: the run is complete at step {start}")
            return state
        steps = range(start + 1, self._length.total + 1)
        per_dispatch = self._setup.config.steps_per_dispatch
        spans = functools.partial(dispatch.spans, steps, per_dispatch, self._is_due)
        if per_dispatch > 1:
            stream = batches.train_windows(self._setup, self._source, state, spans())
        else:
            stream = batches.train_batches(self._setup, self._source, state)
        with stream as found:
            for span, batch in zip(spans(), recorder.timed(found), strict=False):
                state, metrics = self._train_step(state, batch)
                recorder.add(span[-1], metrics, len(span))
                self.step = span[-1]
                self._after(span[-1], state, recorder)
                if recorder.bad_step is not None:
                    break
                if self._patience.over:
                    self._progress.note(f"{self._patience}: the run ends at step {self.step}")
                    break
        return state

    def _is_due(self, step: int) -> bool:
        """Returns whether an evaluation or a checkpoint is due after a step."""
        save = step % self._setup.config.checkpoint_every_steps == 0
        return save or self._length.evaluates_at(step)

    def _after(self, step: int, state: TrainState, recorder: Recorder) -> None:
        """Evaluates, saves or stops, whichever is due after a step.

        Raises:
          Interrupted: a stop was requested; the state has been saved.
        """
        # Asked only once: a second answer could stop the run without having saved this step.
        stop = self._stop_requested()
        if not (stop or self._is_due(step)):
            return
        recorder.flush()
        if recorder.bad_step is not None:
            return
        scores = None
        if not stop and self._length.evaluates_at(step):
            scores = self._evaluate(step, state, recorder)
            stop = scores is None
        # No periodic checkpoint right after non-finite steps: a rollback must find a good state.
        if stop or scores or recorder.nonfinite == 0:
            self._checkpoints.save(step, state, scores)
        if stop:
            self._stop(step)

    def _stop(self, step: int) -> NoReturn:
        """Raises Interrupted, which says whether the state of this step is on disk."""
        saved = self._checkpoints.missing(step) or "the state is saved"
        raise Interrupted(f"stopped after step {step}; {saved}")

    def _evaluate(
        self, step: int, state: TrainState, recorder: Recorder
    ) -> dict[str, float] | None:
        """Evaluates; returns the metrics for the checkpoint, or None if a stop was requested."""

        def before_batch() -> None:
            if self._stop_requested():
                raise Interrupted

        try:
            self._last = run_steps.evaluate(self._setup, self._eval_step, state, before_batch)
        except Interrupted:
            return None
        score = self._setup.task.best.score
        self._patience.add(self._last.metrics)
        if self.best is None or score(self._last.metrics) >= score(self.best.metrics):
            self.best = self._last
        return recorder.evaluation(step, self._last.metrics)

    def _lacks_evaluation(self, step: int) -> bool:
        """Returns whether the evaluation that was due at the step of a resumed run is missing."""
        last = self._log.last or {"step": 0, "split": "none"}
        done = (last["step"], last["split"]) == (step, "eval")
        if jax.process_count() > 1:  # file systems may show processes different
            # versions of metrics.jsonl, but all must decide alike: process 0 decides
            done = bool(multihost_utils.broadcast_one_to_all(np.bool_(done)))
        return not done and (self._length.evaluates_at(step) or step > self._length.total)

    def _evaluate_late(self, state: TrainState, recorder: Recorder) -> None:
        """Makes up for an evaluation that a stop prevented; saves its metrics with the state."""
        step = int(state.step)
        scores = self._evaluate(step, state, recorder)
        if scores is None:
            self._stop(step)
        self._checkpoints.save_again(step, state, scores)

    def _roll_back(self, state: TrainState, bad_step: int) -> TrainState:
        """Returns the last saved state (or a fresh one); the data then come in another order.

        Without another order the same batches would lead to the same non-finite numbers.
        """
        order = state.order + 1
        saved = latest_state(self._setup, self._optimizer, self._checkpoints)
        self._last = self.best = None  # their step may be trained again, with another result
        self._log.rewind(int(saved.step))
        self._patience.recount(self._log.evaluations)
        self._progress.note(
            f"step {bad_step}: loss or gradients were not finite "
            f"{self._setup.config.nonfinite_limit} times in a row; going back to step "
            f"{int(saved.step)}, then on with the data in another order"
        )
        return saved.replace(nonfinite=saved.nonfinite * 0, order=order)

    def _explain_nonfinite(self, state: TrainState, step: int) -> NoReturn:
        """Repeats a bad step, writes nonfinite.json about it, and raises NonFiniteError.

        Args:
          state: the current state; since the bad step only its counters have changed.
          step: number of the bad step.
        """
        setup = self._setup
        state = state.replace(step=np.int32(step - 1))
        with batches.train_batches(setup, self._source, state) as stream:
            batch = next(stream)
        look = functools.partial(
            nonfinite.diagnose,
            setup.model,
            functools.partial(run_steps.preprocess, setup),
            **run_steps.step_options(setup),
        )
        found = run_steps.beside_teacher(setup, look)(state, batch)
        own = cast(TrainBatches, batches.reader(setup, self._source, state).batches)
        whole = dataclasses.replace(own, process_index=0, process_count=1)
        path = self._workdir / nonfinite.REPORT
        if jax.process_index() == 0:
            nonfinite.write_report(path, step, whole.indices(step - 1), found)
        if jax.process_count() > 1:  # the first process that fails ends the others
            multihost_utils.sync_global_devices("the report is written")
        raise nonfinite.NonFiniteError(
            f"loss or gradients were not finite in {setup.config.nonfinite_limit} steps in a row, "
            f"up to step {step}; the first such tensor is: {found['first']}. {path} lists all "
            "tensors and the examples of that step. A lower config.optimizer.learning_rate or a "
            "warm-up often helps."
        )
