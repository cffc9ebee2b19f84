"""A run under way: steps, and what is due after each, evaluations, checkpoints and the end."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from densenet_jax.data.sources.source import Source
from densenet_jax.training import batches, dispatch, nonfinite, run_state, run_steps
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.metrics_log import MetricsLog
from densenet_jax.training.rundir.progress import ProgressLine
from densenet_jax.training.rundir.recorder import Recorder
from densenet_jax.training.state import TrainState


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state, or says that it could not."""


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is, in steps.

    Attributes:
      total: steps of the whole run.
      epoch: steps of an epoch; not always whole.
      evaluation: steps from one evaluation to the next; not always whole.
    """

    total: int
    epoch: float
    evaluation: float

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after a step."""
        return step // self.evaluation > (step - 1) // self.evaluation or step == self.total


def latest_state(
    setup: Experiment, optimizer: optax.GradientTransformation, checkpoints: Checkpoints
) -> TrainState:
    """Returns the state to go on from: of the latest sound checkpoint, or a fresh one."""
    saved = checkpoints.resume(run_state.restore_target(setup, optimizer))
    return run_state.initial_state(setup, optimizer) if saved is None else saved


class Trainer:
    """Takes a state to the end of its run."""

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
    ):
        """Args are what a run is made of.

        Args:
          source: the training split.
          stop_requested: says whether to save and stop after the present step.
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
        self.best: Evaluated | None = None  # the best evaluation since this start

    def run(self, state: TrainState) -> dict[str, Any]:
        """Trains to the end; returns the metrics of the last evaluation.

        Raises:
          Interrupted: a stop was requested; the state is saved.
          NonFiniteError: the numbers stayed bad.
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
        return self._log.last  # the run had been finished before

    def _advance(self, state: TrainState, recorder: Recorder) -> TrainState:
        """Trains to the end, or until the recorder knows a bad step."""
        start = int(state.step)
        if start and self._lacks_evaluation(start):
            self._evaluate_late(state, recorder)
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
                self._after(span[-1], state, recorder)
                if recorder.bad_step is not None:
                    break
        return state

    def _is_due(self, step: int) -> bool:
        """Whether an evaluation or a checkpoint is due after a step."""
        save = step % self._setup.config.checkpoint_every_steps == 0
        return save or self._length.evaluates_at(step)

    def _after(self, step: int, state: TrainState, recorder: Recorder) -> None:
        """Does what is due after a step."""
        stop = self._stop_requested()  # asked once: what is said to be saved has been
        if not (stop or self._is_due(step)):
            return
        recorder.flush()
        if recorder.bad_step is not None:
            return
        scores = None
        if not stop and self._length.evaluates_at(step):
            scores = self._evaluate(step, state, recorder)
            stop = scores is None
        # Amid bad steps there is nothing worth going back to.
        if stop or scores or recorder.nonfinite == 0:
            self._checkpoints.save(step, state, scores)
        if stop:
            self._stop(step)

    def _stop(self, step: int) -> None:
        saved = self._checkpoints.missing(step) or "the state is saved"
        raise Interrupted(f"stopped after step {step}; {saved}")

    def _evaluate(
        self, step: int, state: TrainState, recorder: Recorder
    ) -> dict[str, float] | None:
        """Evaluates; returns the scores for the checkpoint, None if a stop was requested."""

        def before_batch():
            if self._stop_requested():
                raise Interrupted

        try:
            self._last = run_steps.evaluate(self._setup, self._eval_step, state, before_batch)
        except Interrupted:
            return None
        score = self._setup.task.best.score
        if self.best is None or score(self._last.metrics) >= score(self.best.metrics):
            self.best = self._last
        return recorder.evaluation(step, self._last.metrics)

    def _lacks_evaluation(self, step: int) -> bool:
        """Whether an evaluation was due at the step that the run goes on from, and is not there."""
        last = self._log.last or {"step": 0, "split": "none"}
        done = (last["step"], last["split"]) == (step, "eval")
        if jax.process_count() > 1:  # whatever a process sees of the file, all do the same
            done = bool(multihost_utils.broadcast_one_to_all(np.bool_(done)))
        return not done and (self._length.evaluates_at(step) or step > self._length.total)

    def _evaluate_late(self, state: TrainState, recorder: Recorder) -> None:
        """Makes the evaluation that a stop came before, and saves the state with its scores."""
        step = int(state.step)
        scores = self._evaluate(step, state, recorder)
        if scores is None:
            self._stop(step)
        self._checkpoints.save_again(step, state, scores)

    def _roll_back(self, state: TrainState, bad_step: int) -> TrainState:
        """Returns the last saved state (or a fresh one), with the data in the next order."""
        order = state.order + 1
        saved = latest_state(self._setup, self._optimizer, self._checkpoints)
        self._last = self.best = None  # it may have been of a step that comes again, otherwise
        self._log.rewind(int(saved.step))
        self._progress.note(
            f"step {bad_step}: loss or gradients were not finite "
            f"{self._setup.config.nonfinite_limit} times in a row; back to step {int(saved.step)}, "
            "and on with the data in another order"
        )
        return saved.replace(nonfinite=saved.nonfinite * 0, order=order)

    def _explain_nonfinite(self, state: TrainState, step: int) -> None:
        """Repeats a bad step, writes what is wrong with it, and raises NonFiniteError.

        Since that step nothing but the counters of the state has changed.
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
        own = batches.reader(setup, self._source, state).batches
        whole = dataclasses.replace(own, process_index=0, process_count=1)
        path = self._workdir / nonfinite.REPORT
        if jax.process_index() == 0:
            nonfinite.write_report(path, step, whole.indices(step - 1), found)
        if jax.process_count() > 1:  # the first process to fail ends the others
            multihost_utils.sync_global_devices("the report is written")
        raise nonfinite.NonFiniteError(
            f"loss or gradients were not finite in {setup.config.nonfinite_limit} steps in a row, "
            f"up to step {step}; the first such tensor is: {found['first']}. {path} has all of "
            "them and the examples of the step; a lower config.optimizer.learning_rate or a "
            "warm-up often helps."
        )
