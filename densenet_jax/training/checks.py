"""Numbers of a configuration that no run can use are refused, with the name of their key."""

import math

import jax.numpy as jnp
import ml_collections

from densenet_jax.training.errors import ConfigError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


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


def dtype(key: str, name: str):
    if name not in DTYPES:
        raise ConfigError(f"config.model.{key} is {name!r}; it must be one of {list(DTYPES)}.")
    return DTYPES[name]
