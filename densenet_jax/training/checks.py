"""Checks of single values of a configuration; errors name the key and the allowed values."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import ml_collections

from densenet_jax.configs import default
from densenet_jax.configs._options import ABOVE_0, Option
from densenet_jax.data.sources.table_labels import UNCERTAIN
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

# The choices of each key, taken from the tables that define them.  The ranges of numbers are beside
# their defaults, in configs/default.py.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
# Of the computation, not of parameters: float16 needs the loss to be scaled.
COMPUTE_DTYPES = DTYPES | {"float16": jnp.float16, "auto": "auto"}
CHOICES = {
    "data.uncertain": tuple(UNCERTAIN),
    "data.interpolation": ("bicubic", "bilinear"),
    "data.fit": ("crop", "squash", "pad"),
    "data.dtype": ("uint8", "uint16", "float32"),
    "augment.policy": ("", "randaugment", "trivialaugment"),
    "model.stem": tuple(STEMS),
    "model.activation": tuple(ACTIVATIONS),
    "model.global_pool": tuple(GLOBAL_POOLS),
    "model.implementation": (*IMPLEMENTATIONS, *EARLIER_NAMES),
    "model.dtype": tuple(COMPUTE_DTYPES),
    "model.param_dtype": tuple(DTYPES),
    "mesh.preset": ("", *PRESETS),
    "task": tuple(TASKS),
    "loss": ("", *LOSSES),
    "class_weights": ("", "auto"),  # or numbers
    "optimizer.name": tuple(OPTIMIZERS),
    "optimizer.schedule": tuple(SCHEDULES),
}
DURATIONS = (
    "optimizer.warmup",
    "optimizer.step_boundaries",
    "optimizer.decay",
    "optimizer.restarts",
)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for the first value that cannot be used."""
    check_values(config)
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
    channels, colours = config.data.channels, config.augment.jitter[2:]
    if (any(colours) and channels != 3) or (config.augment.policy and channels not in (1, 3)):
        what = "jitter of saturation and hue" if any(colours) else "policy"
        raise ConfigError(
            f"config.augment has {what}, which needs images of 3 channels, but "
            f"config.data.channels is {channels}; switch it off."
        )
    if len(config.data.train_sizes) > 1 and config.data.in_memory:
        raise ConfigError(
            "config.data.in_memory holds images of one size, so config.data.train_sizes can have "
            "one at most; pass --config.data.in_memory=False."
        )
    if config.distill.logits and (config.augment.mixup or config.augment.cutmix):
        raise ConfigError(
            "config.distill.logits has logits of unmixed images: set config.augment.mixup and "
            "config.augment.cutmix to 0, or use the teacher itself, config.distill.teacher."
        )
    if config.distill.logits and config.distill.teacher:
        raise ConfigError("config.distill has both teacher and logits; set only one of them.")
    if config.steps_per_dispatch > 1 and (config.distill.logits or config.distill.teacher):
        raise ConfigError("config.distill needs config.steps_per_dispatch=1.")
    if isinstance(config.model.freeze_statistics, str | int | float) and not isinstance(
        config.model.freeze_statistics, bool
    ):
        raise ConfigError(
            f"config.model.freeze_statistics is {config.model.freeze_statistics!r}; it must be "
            "True, False, or names of parts in parentheses, ('stem', 'block1')."
        )
    if config.task == "regression":
        for key in ("label_smoothing", "bce_threshold", "class_weights", "data.balanced"):
            if _get(config, key):
                raise ConfigError(
                    f"config.{key} is {_get(config, key)}, which has no meaning for "
                    "config.task='regression', whose targets are numbers; leave it out."
                )


def check_values(config: ml_collections.ConfigDict, prefixes: tuple[str, ...] = ("",)) -> None:
    """Checks ranges, choices and lengths of single values.

    Args:
      config: the configuration.
      prefixes: of the keys to check; model. and data. for a run that only predicts.

    Raises:
      ConfigError: for the first value that cannot be used.
    """
    for option in default.OPTIONS:
        if option.range is None or not option.key.startswith(prefixes):
            continue
        low, high = option.range
        for value in _numbers(option, _get(config, option.key)):
            if not low <= value <= high:  # NaN is in no range
                least = "above 0" if low == ABOVE_0 else f"at least {low:g}"
                raise ConfigError(
                    f"config.{option.key} is {value}; it must be {least}, at most {high:g}."
                )
    for key, choices in CHOICES.items():
        value = _get(config, key)
        numbers = key == "class_weights" and not isinstance(value, str)  # checked above
        if key.startswith(prefixes) and not numbers and value not in (None, *choices):
            raise ConfigError(
                f"config.{key} is {value!r}; it must be one of {', '.join(filter(None, choices))}."
            )
    for key, length in (("mean", config.data.channels), ("std", config.data.channels)):
        values = config.data[key]
        if values is not None and len(values) not in (1, length):
            raise ConfigError(f"config.data.{key} has {len(values)} values for {length} channels.")
    ends = config.data.value_range
    if ends and (len(ends) != 2 or not ends[0] < ends[1]):
        raise ConfigError(
            f"config.data.value_range is {ends}; it must be two numbers, the smaller first."
        )
    blocks = config.model.block_sizes
    if blocks is not None and not 1 <= len(blocks) <= 16:
        raise ConfigError(f"config.model.block_sizes has {len(blocks)} blocks; it must be 1 to 16.")


def check_dtype(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for options that do not suit the type of the images, once it is known."""
    dtype = config.data.dtype
    if dtype == "float32" and not config.data.value_range:
        raise ConfigError(
            "The images are float32, so config.data.value_range must say which of their numbers "
            "become 0 and 1; the command `statistics` measures them."
        )
    if config.augment.policy and (dtype != "uint8" or config.data.value_range):
        raise ConfigError(
            f"config.augment.policy works on images of 8 bits, but they are {dtype}; set it to ''."
        )


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key, such as "optimizer.name"."""
    for part in key.split("."):
        config = config[part]
    return config


def _numbers(option: Option, value: Any) -> Iterable[float]:
    """Returns the numbers of an option's value: several, one, or none for None."""
    key = option.key
    if isinstance(value, str) and value in CHOICES.get(key, ()):
        return ()
    values = value if isinstance(value, tuple | list) else () if value is None else (value,)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"config.{key} is {value!r}; it must be made of numbers.")
    if option.whole and not all(isinstance(v, int) for v in values):
        raise ConfigError(f"config.{key} is {value!r}; it must be made of whole numbers.")
    return values
