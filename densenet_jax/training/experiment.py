"""A configuration made real: model, data, optimiser, steps and mesh, checked against each other."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from densenet_jax.data import device, pipeline, sources
from densenet_jax.data.sources import Source
from densenet_jax.models.variants import create_model
from densenet_jax.training import mesh as meshes
from densenet_jax.training import optimizer as optimizers
from densenet_jax.training import state as states
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.state import TrainState

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `train_and_evaluate` and `evaluate` work with."""

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    model: nn.Module
    eval_source: Source

    @property
    def image_shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return data.image_size, data.image_size, data.channels

    def _host_args(self, batch_size: int) -> dict[str, Any]:
        data = self.config.data
        return {
            "batch_size": batch_size,
            "image_size": data.image_size,
            "channels": data.channels,
            "workers": data.workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def _normalize(self, images: jax.Array) -> jax.Array:
        data = self.config.data
        return device.normalize(images, data.mean, data.std, self.model.dtype)

    def eval_batches(self):
        """Returns one pass over the evaluation split, on the mesh."""
        data = self.config.data
        batches = pipeline.eval_batches(
            self.eval_source,
            crop_fraction=data.eval_crop,
            interpolation=data.interpolation,
            **self._host_args(self.config.eval_batch_size),
        )
        return pipeline.to_mesh(batches, meshes.batch_sharding(self.mesh))

    def eval_step(self):
        return steps.make_eval_step(self.model, self._normalize)

    def optimizer(self, total_steps: int, steps_per_epoch: float):
        """Returns the optimiser and its schedule."""
        options = self.config.optimizer
        schedule = optimizers.make_schedule(
            options.schedule,
            learning_rate=options.learning_rate,
            total_steps=total_steps,
            warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            boundaries=options.step_boundaries,
            factor=options.step_factor,
        )
        optimizer = optimizers.make_optimizer(
            schedule,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        return optimizer, schedule

    def preprocess(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Maps uint8 training images to augmented, normalised ones, inside the step."""
        options = self.config.augment
        return self._normalize(device.augment(key, images, pad=options.pad, flip=options.flip))

    def train_step(self, optimizer: optax.GradientTransformation, schedule: optax.Schedule):
        return steps.make_train_step(
            self.model,
            optimizer,
            schedule,
            self.preprocess,
            label_smoothing=self.config.label_smoothing,
            seed=self.config.seed,
        )

    def reader(self, source: Source, start: int) -> pipeline.Reader:
        """Returns the endless stream of training batches from a step on, on the host."""
        data = self.config.data
        return pipeline.train_batches(
            source,
            random_crop=data.random_crop,
            crop_scale=data.crop_scale,
            seed=self.config.seed,
            start=start,
            **self._host_args(self.config.batch_size),
        )

    def train_batches(self, source: Source, start: int):
        """Returns the same stream on the mesh."""
        return pipeline.to_mesh(self.reader(source, start), meshes.batch_sharding(self.mesh))

    def initial_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        return states.initial_state(
            self.model,
            optimizer,
            self.config.seed,
            self.image_shape,
            meshes.replicated(self.mesh),
        )


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Returns the experiment that a configuration describes.

    Raises:
      ConfigError, DataError: values that are unknown or do not fit together.
    """
    mesh = meshes.make_mesh(config.mesh.data)
    meshes.check_batch_size("batch_size", config.batch_size, mesh)
    meshes.check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    check_numbers(config)
    fields = {k: v for k, v in config.model.items() if v is not None}
    name = fields.pop("name")
    fields["dtype"] = _dtype("dtype", fields["dtype"])
    fields["param_dtype"] = _dtype("param_dtype", fields["param_dtype"])
    try:  # before any data are opened: a misspelt model is told at once
        create_model(name, **fields, in_channels=config.data.channels)
    except ValueError as e:
        raise ConfigError(str(e)) from None
    eval_source = sources.load(config.data.name, config.data.eval_split, config.data.data_dir)
    num_classes = fields.pop("num_classes", eval_source.num_classes)
    if num_classes != eval_source.num_classes:
        raise ConfigError(
            f"config.model.num_classes is {num_classes}, but {config.data.name} has "
            f"{eval_source.num_classes} classes; leave it out to take the data's number."
        )
    model = create_model(name, num_classes=num_classes, in_channels=config.data.channels, **fields)
    return Experiment(config, mesh, model, eval_source)


def total_steps(config: ml_collections.ConfigDict, train_examples: int) -> int:
    """Returns the length of the run: `total_steps` if it is set, else `total_epochs`."""
    if config.total_steps is not None:
        return config.total_steps
    return max(1, round(config.total_epochs * train_examples / config.batch_size))


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for numbers that no run can use, naming the key."""
    positive = {
        "total_epochs": config.total_epochs,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "data.image_size": config.data.image_size,
        "data.channels": config.data.channels,
        "data.eval_crop": config.data.eval_crop,
        "log_every": config.log_every,
        "eval_every_epochs": config.eval_every_epochs,
        "checkpoint_every_steps": config.checkpoint_every_steps,
        "checkpoints_to_keep": config.checkpoints_to_keep,
        "nonfinite_limit": config.nonfinite_limit,
    }
    if config.total_steps is not None:
        positive["total_steps"] = config.total_steps
    for key, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"config.{key} is {value}; it must be a positive number.")
    not_negative = {
        "seed": config.seed,
        "label_smoothing": config.label_smoothing,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "optimizer.momentum": config.optimizer.momentum,
        "optimizer.warmup_epochs": config.optimizer.warmup_epochs,
        "data.workers": config.data.workers,
        "augment.pad": config.augment.pad,
    }
    for key, value in not_negative.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"config.{key} is {value}; it must not be negative.")
    if config.seed >= 2**32:
        raise ConfigError(f"config.seed is {config.seed}; it must be below 2**32.")
    if config.label_smoothing >= 1:
        raise ConfigError(
            f"config.label_smoothing is {config.label_smoothing}; it must be below 1."
        )
    if config.data.interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"config.data.interpolation is {config.data.interpolation!r}; "
            "it must be 'bicubic' or 'bilinear'."
        )
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, config.data.channels):
            raise ConfigError(
                f"config.data.{key} has {len(config.data[key])} values for "
                f"{config.data.channels} channels."
            )


def _dtype(key: str, name: str):
    if name not in DTYPES:
        raise ConfigError(f"config.model.{key} is {name!r}; it must be one of {list(DTYPES)}.")
    return DTYPES[name]
