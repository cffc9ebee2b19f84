"""The compiled steps of an experiment, and its evaluation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from densenet_jax.data.augment import device
from densenet_jax.data.reading import resident
from densenet_jax.data.sources.source import Source
from densenet_jax.tasks.task import Metrics
from densenet_jax.training import batches, dispatch, distillation, eval_loop
from densenet_jax.training import mesh as meshes
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.run_state import state_sharding
from densenet_jax.training.schedules import Units
from densenet_jax.training.settings import (
    example_weights,
    make_loss,
    make_optimizer,
    make_schedule,
    student_loss,
)
from densenet_jax.training.state import TrainState


def optimizer(
    setup: Experiment, total_steps: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser of a run, and its learning rate by step.

    Args:
      setup: the experiment.
      total_steps: number of steps in the run.
      steps_per_epoch: number of steps in an epoch, which may be a fraction.
    """
    units = Units(total_steps, steps_per_epoch, setup.config.batch_size)
    schedule = make_schedule(setup.config, units)
    return make_optimizer(setup.config, schedule), schedule


def preprocess(
    setup: Experiment, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns augmented, normalised images [B, H, W, C] and their targets [B, classes].

    Args:
      setup: the experiment.
      key: of the random augmentation.
      images: [B, H, W, C].
      labels: [B].
    """
    targets = setup.task.targets(labels, setup.model.num_classes)
    given, ends = setup.preprocessing, setup.preprocessing.ends
    if ends != device.EIGHT_BITS:  # augmentations know 8 bits, and 0 to 1
        images, ends = device.scale(images, ends), (0.0, 1.0)
    images, targets = device.augment(key, images, targets, **setup.config.augment)
    return device.normalize(images, given.mean, given.std, setup.model.dtype, ends), targets


def step_options(setup: Experiment) -> dict[str, Any]:
    """Returns the keyword arguments that the training step shares with `nonfinite.diagnose`."""
    teacher, distill = setup.teacher, setup.config.distill
    guide = teacher.guide if teacher else distillation.stored_guide if distill.logits else None
    return {
        "loss": student_loss(setup.config),
        "seed": setup.config.seed,
        "guide": guide,
        "weigh": example_weights(setup.config),
        "groups": setup.groups,
    }


def train_step(
    setup: Experiment, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[..., Any]:
    """Returns the compiled training step on the mesh, with the teacher if there is one.

    Args:
      setup: the experiment.
      optimizer: its optimiser.
      schedule: the optimiser's learning rate by step.

    Returns:
      a function of (state, batch) that returns the next state and its metrics.
    """
    step = steps.make_train_step(
        setup.model,
        optimizer,
        schedule,
        functools.partial(preprocess, setup),
        task=setup.task,
        ema_decay=setup.config.ema_decay,
        nonfinite_limit=setup.config.nonfinite_limit,
        **step_options(setup),
    )
    sharding = state_sharding(setup, optimizer)
    return beside_teacher(setup, meshes.train_step_on(setup.mesh, step, sharding))


def many_steps(setup: Experiment, step: dispatch.Step) -> dispatch.Step:
    """Returns the function that takes all steps of a window of `batches.train_windows`.

    Args:
      setup: the experiment.
      step: the training step, see `train_step`.
    """
    config, sharding = setup.config, meshes.batch_sharding(setup.mesh)
    pick = functools.partial(resident.pick, sharding=sharding)
    return dispatch.many_steps(step, pick, config.steps_per_dispatch, config.nonfinite_limit)


def eval_step(setup: Experiment) -> Callable[..., Any]:
    """Returns the compiled evaluation step on the mesh; see `eval_loop.make_eval_step`."""
    loss = make_loss(setup.config)
    step = eval_loop.make_eval_step(setup.model, setup.normalize, setup.task, loss)
    return meshes.eval_step_on(setup.mesh, step)


def beside_teacher(setup: Experiment, step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a step whose batches also bring the teacher's variables, if there is a teacher.

    Args:
      setup: the experiment.
      step: a function of (state, batch).
    """
    if setup.teacher is None:
        return step
    return setup.teacher.beside(step, meshes.replicated(setup.mesh))


def evaluate(
    setup: Experiment,
    eval_step: Callable[..., Any],
    state: TrainState,
    before_batch: Callable[[], None] = lambda: None,
) -> eval_loop.Evaluated:
    """Evaluates a state on the evaluation split.

    If the run keeps moving averages, the metrics are theirs; the metrics of the trained variables
    have the prefix `raw_`.

    Args:
      setup: the experiment.
      eval_step: as `eval_step` returns it.
      state: the state to evaluate.
      before_batch: called before each batch; it may raise to end the evaluation early.
    """

    def step(variables: Any, batch: Any) -> tuple[Metrics, eval_loop.Answers]:
        before_batch()
        return eval_step(variables, batch)

    networks = [state.result, *([] if state.ema is None else [state.variables])]
    with batches.eval_batches(setup) as split:
        found = eval_loop.evaluate(step, networks, split, setup.task)
    metrics, answers = found[0]
    if state.ema is not None:
        raw = found[1][0]
        metrics = metrics | {f"raw_{m.key}": raw[m.key] for m in setup.task.metrics}
    return eval_loop.Evaluated(int(state.step), metrics, answers)


def check_training(setup: Experiment, source: Source) -> None:
    """Makes checks whose errors training would raise only after creating the run's directory.

    Args:
      setup: the experiment.
      source: the training split.

    Raises:
      ConfigError: the stored logits are of other data, a model cannot take the images, or batch
        normalisation would have a single value per channel.
    """
    batches.stored_logits(setup, source)
    teacher = setup.teacher
    for size in setup.train_sizes if teacher else setup.config.data.train_sizes:
        images = jax.ShapeDtypeStruct((1, size, size, setup.config.data.channels), "float32")
        for model in (setup.model, teacher and teacher.model):
            try:
                if model:
                    jax.eval_shape(model.init, jax.random.key(0), images)
            except ValueError as e:
                raise ConfigError(f"For training images of {size} pixels: {e}") from None
    if setup.config.batch_size == setup.groups.count:
        _check_single_examples(setup)


def _check_single_examples(setup: Experiment) -> None:
    """Raises ConfigError if groups of one give batch normalisation one value per channel."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    for size in setup.train_sizes:
        images = jax.ShapeDtypeStruct((1, size, size, setup.config.data.channels), "float32")
        variables = jax.eval_shape(setup.model.init, keys, images)

        def train(variables: Any, images: jax.Array) -> Any:
            options: dict[str, Any] = {"train": True, "mutable": ["batch_stats"], "rngs": keys}
            return setup.model.apply(variables, images, **options)

        try:
            jax.eval_shape(train, variables, images)
        except ValueError as e:
            raise ConfigError(
                f"With one example at a time (config.batch_size {setup.config.batch_size} in "
                f"{setup.groups.count} groups) of {size} pixels, {e}"
            ) from None
