"""The learning rate as a function of the step, and how a length of training is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import optax

from densenet_jax.training.errors import ConfigError

SCHEDULES = ("constant", "cosine", "step", "polynomial", "one_cycle", "warmup_stable_decay")
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE]\+?\d+)?|\.\d+)\s*(epochs?|steps?|examples?)?\s*")


@dataclass(frozen=True)
class Units:
    """What turns a duration into steps.

    Attributes:
      total_steps: of the whole run.
      steps_per_epoch: a fraction, where the batch does not divide the data.
      batch_size: examples in a step, over all devices.
    """

    total_steps: int
    steps_per_epoch: float
    batch_size: int

    def steps(self, duration: str | float, key: str = "a duration") -> int:
        """Returns a duration in steps.

        Args:
          duration: "5 epochs", "500 steps", "1e6 examples"; a number without unit is a share of
            the run, from 0 to 1.
          key: of the configuration, for messages.

        Raises:
          ConfigError: it is none of these.
        """
        number, unit = parse_duration(duration, key)
        each = {
            "epoch": self.steps_per_epoch,
            "step": 1,
            "example": 1 / self.batch_size,
            "": self.total_steps,
        }
        return round(number * each[unit])


def parse_duration(duration: str | float, key: str) -> tuple[float, str]:
    """Returns number and unit (`epoch`, `step`, `example`, or "": a share of the run)."""
    match = _DURATION.fullmatch(str(duration))
    number = float(match[1]) if match else -1.0
    unit = (match[2] or "").removesuffix("s") if match else ""
    if not 0 <= number < 1e15 or (not unit and number > 1):
        raise ConfigError(
            f"{key} is {duration!r}; it must be a duration: '5 epochs', '500 steps', "
            "'1e6 examples', or a share of the run from 0 to 1, such as 0.1."
        )
    return number, unit


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    decay_steps: int = 0,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      name: `constant`; `cosine` to 0 (Loshchilov and Hutter, 2017); `step`; `polynomial` of
        power 2 to 0 (You et al., 2017); `one_cycle` (Smith and Topin, 2018: from 1/25 of the peak
        up to it and down to nothing, by half cosines);
        `warmup_stable_decay` (Zhai et al., 2022: constant, and linear to 0 at the end).
      learning_rate: the peak.
      warmup_steps: of the linear rise from 0; of the rise of `one_cycle`.
      boundaries: of `step`: the steps at which the rate is multiplied by `factor`.
      decay_steps: of `warmup_stable_decay`: how long before the end the rate starts to fall.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"config.optimizer.schedule is {name!r}; it must be one of {', '.join(SCHEDULES)}."
        )
    if name == "one_cycle":
        if not 0 < warmup_steps < total_steps:
            raise ConfigError(
                f"The schedule one_cycle rises for {warmup_steps} of {total_steps} steps; "
                "config.optimizer.warmup must leave some for either way: '0.3' is usual."
            )
        share = warmup_steps / total_steps
        return optax.cosine_onecycle_schedule(total_steps, learning_rate, share)
    rest = max(total_steps - warmup_steps, 1)
    if name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, rest)
    elif name == "polynomial":
        schedule = optax.polynomial_schedule(learning_rate, 0.0, 2, rest)
    elif name == "step":
        # A drop during the warm-up is one of the peak that the warm-up ends at.
        drops: dict[int, float] = {}
        for boundary in boundaries:
            at = max(boundary - warmup_steps, 0)
            drops[at] = drops.get(at, 1.0) * factor
        schedule = optax.piecewise_constant_schedule(learning_rate, drops)
    elif name == "warmup_stable_decay":
        falling = min(decay_steps, rest)
        fall = optax.linear_schedule(learning_rate, 0.0, max(falling, 1))
        stable = optax.constant_schedule(learning_rate)
        schedule = optax.join_schedules([stable, fall], [rest - falling]) if falling else stable
    else:
        schedule = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])
