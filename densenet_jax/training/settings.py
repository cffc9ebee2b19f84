"""The objects that a configuration describes: mesh, data, model, optimiser, task, losses."""

import jax
import ml_collections
import optax
from flax import linen as nn

from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Source
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.variants import create_model
from densenet_jax.tasks import losses
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.losses import Loss, TrainLoss, Weigh
from densenet_jax.tasks.task import Task
from densenet_jax.training import checks, distillation, schedules
from densenet_jax.training import mesh as meshes
from densenet_jax.training import optimizer as optimizers
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.schedules import Units
from densenet_jax.weights import Preprocessing


def make_mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """Returns the mesh of a configuration, see `mesh.make_mesh`."""
    axes = config.mesh
    return meshes.make_mesh(axes.data, axes.model, axes.preset)


def train_source(config: ml_collections.ConfigDict) -> Source:
    """Returns the training split, limited to `data.classes` and `data.examples_per_class`."""
    return _source(config, config.data.train_split, config.data.examples_per_class)


def eval_source(config: ml_collections.ConfigDict) -> Source:
    """Returns the evaluation split, limited to `data.classes`."""
    return _source(config, config.data.eval_split)


def _source(config: ml_collections.ConfigDict, split: str, per_class: int = 0) -> Source:
    data = config.data
    columns = by_name.Columns(
        data.path_column,
        data.label_columns,
        data.uncertain,
        data.split_column,
        data.group_column,
    )
    return by_name.load(
        data.name,
        split,
        data.data_dir,
        data.holdout,
        data.classes,
        per_class,
        task=config.task,
        columns=columns,
        group=data.group,
        folds=data.folds,
        fold=data.fold,
    )


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
    """Returns the model of a configuration.

    Raises:
      ConfigError: it names no model, an unknown one, or options that do not fit the model.
    """
    fields = {k: v for k, v in config.model.items() if v is not None}
    name = fields.pop("name")
    if not name:
        raise ConfigError(
            f"config.model.name is empty, and {config.init_from or 'the configuration'} does not "
            "say which network to build; pass --config.model.name=densenet121, for example."
        )
    fields["dtype"] = checks.COMPUTE_DTYPES[fields["dtype"]]
    fields["param_dtype"] = checks.DTYPES[fields["param_dtype"]]
    try:
        model = create_model(name, in_channels=config.data.channels, **fields)
        # What does not train keeps its statistics, too, unless the configuration says otherwise.
        if isinstance(model, DenseNet) and "freeze_statistics" not in fields:
            frozen = tuple(part for part in config.optimizer.frozen if part in model.norm_parts)
            model = model.clone(freeze_statistics=frozen or False)
        return model
    except ValueError as e:
        raise ConfigError(str(e)) from None


def make_schedule(config: ml_collections.ConfigDict, units: Units) -> optax.Schedule:
    """Returns the learning rate by step.

    Args:
      config: the configuration.
      units: the run's total steps, steps per epoch and batch size, which convert durations.

    Raises:
      ConfigError: a duration or the schedule's name cannot be used.
    """
    options = config.optimizer
    reference = options.reference_batch_size or config.batch_size

    def steps(key: str) -> list[int]:
        return [units.steps(duration, f"config.optimizer.{key}") for duration in options[key]]

    return schedules.make_schedule(
        options.schedule,
        learning_rate=options.learning_rate * config.batch_size / reference,
        total_steps=units.total_steps,
        restarts=steps("restarts"),
        restart_factor=options.restart_factor,
        warmup_steps=units.steps(options.warmup, "config.optimizer.warmup"),
        boundaries=steps("step_boundaries"),
        factor=options.step_factor,
        decay_steps=units.steps(options.decay, "config.optimizer.decay"),
    )


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimiser of a configuration; its state has the same structure for any schedule.

    Args:
      config: the configuration.
      schedule: the learning rate by step.
    """
    options = config.optimizer
    return optimizers.make_optimizer(
        schedule,
        name=options.name,
        momentum=options.momentum,
        nesterov=options.nesterov,
        betas=options.betas,
        epsilon=options.epsilon,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        layer_decay=options.layer_decay,
        frozen=tuple(options.frozen),
    )


def make_task(config: ml_collections.ConfigDict) -> Task:
    """Returns the task of a configuration, with its loss and the metric of the best checkpoint.

    Raises:
      ConfigError: there is no such task, it has no such metric, or the loss does not fit it.
    """
    unit = (config.data.target_mean or (), config.data.target_std or ())
    try:
        return find_task(config.task, config.best_metric, config.loss, *unit)
    except ValueError as e:
        raise ConfigError(f"config.{e}") from None


def make_loss(config: ml_collections.ConfigDict) -> Loss:
    """Returns the loss for evaluation: without smoothing, class weights, thresholds or teacher."""
    return losses.make_loss(make_task(config).loss, config.task)


def student_loss(config: ml_collections.ConfigDict) -> TrainLoss:
    """Returns the loss for training: with label smoothing, thresholds and the teacher, if any."""
    distill, name = config.distill, make_task(config).loss
    loss = losses.make_loss(
        name,
        config.task,
        smoothing=config.label_smoothing,
        threshold=config.bce_threshold if name == "binary_cross_entropy" else 0.0,
        positive_weights=config.class_weights if config.task == "multilabel" else (),
    )
    if not (distill.teacher or distill.logits):
        return loss
    return distillation.distilling(loss, distill.weight, distill.temperature, config.task)


def example_weights(config: ml_collections.ConfigDict) -> Weigh | None:
    """Returns the weights of examples in the training loss; None: all weigh the same."""
    weights = config.class_weights if config.task == "classification" else ()
    return losses.example_weights(config.task, weights)


def settle_preprocessing(config: ml_collections.ConfigDict, given: Preprocessing) -> None:
    """Sets the keys of preprocessing that a configuration leaves open (None).

    Args:
      config: the configuration, which is changed.
      given: the values for these keys.
    """
    values = {
        "fit": given.fit,
        "image_size": given.image_size,
        "eval_crop": given.crop_fraction,
        "interpolation": given.interpolation,
        "mean": given.mean,
        "std": given.std,
    }
    for key, value in values.items():
        if config.data[key] is None:
            config.data[key] = value


def preprocessing(config: ml_collections.ConfigDict) -> Preprocessing:
    """Returns the preprocessing of a complete configuration."""
    data = config.data
    return Preprocessing(
        data.image_size,
        data.eval_crop,
        data.interpolation,
        tuple(data.mean),
        tuple(data.std),
        data.fit,
        data.dtype,
        tuple(data.value_range),
        data.exif,
    )


def total_steps(config: ml_collections.ConfigDict, train_examples: int) -> int:
    """Returns the length of the run in steps: `total_steps` if set, else from `total_epochs`.

    Args:
      config: the configuration.
      train_examples: number of examples in the training split.
    """
    if config.total_steps is not None:
        return config.total_steps
    return max(1, round(config.total_epochs * train_examples / config.batch_size))
