"""Values of a configuration that no run can use are refused, with the name of their key."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import ml_collections

from densenet_jax.models.activation import ACTIVATIONS
from densenet_jax.models.block.implementations import EARLIER_NAMES, IMPLEMENTATIONS
from densenet_jax.models.pooling import GLOBAL_POOLS
from densenet_jax.models.stem import STEMS
from densenet_jax.tasks.by_name import TASKS
from densenet_jax.tasks.losses import LOSSES
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.mesh import PRESETS
from densenet_jax.training.optimizer import OPTIMIZERS
from densenet_jax.training.rundir import loggers
from densenet_jax.training.schedules import SCHEDULES, parse_duration

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
CHOICES = {
    "data.interpolation": ("bicubic", "bilinear"),
    "augment.policy": ("", "randaugment", "trivialaugment"),
    "model.stem": tuple(STEMS),
    "model.activation": tuple(ACTIVATIONS),
    "model.global_pool": tuple(GLOBAL_POOLS),
    "model.implementation": (*IMPLEMENTATIONS, *EARLIER_NAMES),
    "model.dtype": tuple(DTYPES),
    "model.param_dtype": tuple(DTYPES),
    "mesh.preset": ("", *PRESETS),
    "task": tuple(TASKS),
    "loss": ("", *LOSSES),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
}
DURATIONS = ("optimizer.warmup", "optimizer.step_boundaries", "optimizer.decay")
# Smallest and largest value of each number; None (the variant's, or the weights') is always one.
TINY = 1e-12
WHOLE = ("model.block_sizes", "model.growth_rate", "data.train_sizes")  # tuples of whole numbers
RANGES = {
    "seed": (0, 2**32 - 1),
    "batch_size": (1, 2**20),
    "eval_batch_size": (1, 2**20),
    "steps_per_dispatch": (1, 10**5),
    "total_epochs": (TINY, 1e6),
    "total_steps": (1, 2**31 - 1),
    "label_smoothing": (0, 0.999),
    "bce_threshold": (0, 0.999),
    "ema_decay": (0, 0.9999999),
    "distill.weight": (0, 1),
    "distill.temperature": (1e-3, 1e3),
    "model.num_classes": (1, 10**6),
    "model.dropout_rate": (0, 0.999),
    "model.drop_path_rate": (0, 0.999),
    "model.growth_rate": (1, 4096),
    "model.block_sizes": (1, 512),
    "model.stem_features": (1, 8192),
    "model.bottleneck_width": (0, 64),
    "model.compression": (0.01, 1),
    "model.depth": (5, 2000),
    "data.image_size": (1, 8192),
    "data.train_sizes": (1, 8192),
    "data.channels": (1, 1024),
    "data.crop_scale": (TINY, 1),
    "data.eval_crop": (0.01, 1),
    "data.std": (TINY, 1e6),
    "data.mean": (-1e6, 1e6),
    "data.holdout": (TINY, 0.999),
    "data.workers": (0, 1024),
    "data.examples_per_class": (0, 10**9),
    "augment.pad": (0, 4096),
    "augment.jitter": (0, 100),
    "augment.policy_ops": (1, 16),
    "augment.policy_magnitude": (0, 30),
    "augment.erase": (0, 1),
    "augment.mixup": (0, 1e6),
    "augment.cutmix": (0, 1e6),
    "augment.mix_probability": (0, 1),
    "optimizer.learning_rate": (0, 1e30),
    "optimizer.step_factor": (0, 1e6),
    "optimizer.momentum": (0, 1),
    "optimizer.betas": (0, 0.9999999),
    "optimizer.epsilon": (0, 1e6),
    "optimizer.clip_norm": (0, 1e30),
    "optimizer.layer_decay": (TINY, 1),
    "optimizer.weight_decay": (0, 1e6),
    "optimizer.accumulate": (1, 2**20),
    "optimizer.reference_batch_size": (1, 2**20),
    "batch_norm.group_size": (1, 2**20),
    "mesh.data": (-1, 2**20),
    "mesh.model": (-1, 2**20),
    "mesh.split_from": (1, 2**31 - 1),
    "log_every": (1, 2**31 - 1),
    "eval_every_epochs": (TINY, 1e6),
    "checkpoint_every_steps": (1, 2**31 - 1),
    "checkpoints_to_keep": (1, 10**4),
    "nonfinite_limit": (1, 2**31 - 1),
    "nonfinite_rollbacks": (0, 2**31 - 1),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for the first value that no run can use."""
    for key, (low, high) in RANGES.items():
        for value in _numbers(key, _get(config, key)):
            if not low <= value <= high:  # NaN is in no range
                least = "above 0" if low == TINY else f"at least {low:g}"
                raise ConfigError(f"config.{key} is {value}; it must be {least}, at most {high:g}.")
    for key, choices in CHOICES.items():
        value = _get(config, key)
        if value not in (None, *choices):
            raise ConfigError(
                f"config.{key} is {value!r}; it must be one of {', '.join(filter(None, choices))}."
            )
    if config.steps_per_dispatch > 1 and not config.data.in_memory:
        raise ConfigError(
            f"config.steps_per_dispatch is {config.steps_per_dispatch}, which needs the training "
            "images on the device: add --config.data.in_memory=True."
        )
    for key in DURATIONS:
        value = _get(config, key)
        for duration in value if isinstance(value, tuple | list) else (value,):
            parse_duration(duration, f"config.{key}")
    betas = config.optimizer.betas
    if betas is not None and len(betas) != 2:
        raise ConfigError(f"config.optimizer.betas is {betas}; it must be two numbers.")
    for key, length in (("mean", config.data.channels), ("std", config.data.channels)):
        values = config.data[key]
        if values is not None and len(values) not in (1, length):
            raise ConfigError(f"config.data.{key} has {len(values)} values for {length} channels.")
    loggers.check(config.loggers)
    low_high = config.data.crop_scale
    if len(low_high) != 2 or low_high[0] > low_high[1]:
        raise ConfigError(
            f"config.data.crop_scale is {low_high}; it must be two numbers, the smaller first."
        )
    if len(config.augment.jitter) != 4 or config.augment.jitter[3] > 0.5:
        raise ConfigError(
            f"config.augment.jitter is {config.augment.jitter}; it must be four strengths: "
            "brightness, contrast, saturation, and hue of at most 0.5."
        )
    if len(config.data.train_sizes) > 1 and config.data.in_memory:
        raise ConfigError(
            "config.data.in_memory holds images of one size, so config.data.train_sizes can have "
            "one at most; pass --config.data.in_memory=False."
        )
    if config.distill.logits and (config.augment.mixup or config.augment.cutmix):
        raise ConfigError(
            "config.distill.logits are of single images: set config.augment.mixup and "
            "config.augment.cutmix to 0, or name the teacher itself, config.distill.teacher."
        )
    if config.distill.logits and config.distill.teacher:
        raise ConfigError("config.distill has a teacher and stored logits; leave one out.")
    if config.steps_per_dispatch > 1 and (config.distill.logits or config.distill.teacher):
        raise ConfigError("config.distill needs config.steps_per_dispatch=1.")
    blocks = config.model.block_sizes
    if blocks is not None and not 1 <= len(blocks) <= 16:
        raise ConfigError(f"config.model.block_sizes has {len(blocks)} blocks; it must be 1 to 16.")


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _numbers(key: str, value: Any) -> Iterable[float]:
    values = value if isinstance(value, tuple | list) else () if value is None else (value,)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"config.{key} is {value!r}; it must be made of numbers.")
    if key in WHOLE and not all(isinstance(v, int) for v in values):
        raise ConfigError(f"config.{key} is {value!r}; it must be made of whole numbers.")
    return values
