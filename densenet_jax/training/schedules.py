"""The learning rate as a function of the step, and how a length of training is written.

A new schedule is one function and one entry of `SCHEDULES`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import optax

from densenet_jax.training.errors import ConfigError

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


class Shape(NamedTuple):
    """What a schedule is made from; each uses the fields that it knows.  Lengths are in steps.

    Attributes:
      peak: the largest learning rate.
      total: length of the run.
      warmup: length of the warm-up.
      boundaries: from the start of the run, where `step` multiplies the rate by `factor`.
      factor: see `boundaries`.
      decay: length of the last phase of `warmup_stable_decay`.
    """

    peak: float
    total: int
    warmup: int
    boundaries: Sequence[int]
    factor: float
    decay: int

    @property
    def rest(self) -> int:
        """Steps after the warm-up."""
        return max(self.total - self.warmup, 1)


def _after_warmup(then: Callable[[Shape], optax.Schedule]) -> Callable[[Shape], optax.Schedule]:
    """Puts a linear warm-up from 0 before a schedule that starts at the peak."""

    def schedule(shape: Shape) -> optax.Schedule:
        if not shape.warmup:
            return then(shape)
        warmup = optax.linear_schedule(0.0, shape.peak, shape.warmup)
        return optax.join_schedules([warmup, then(shape)], [shape.warmup])

    return schedule


def _constant(shape: Shape) -> optax.Schedule:
    return optax.constant_schedule(shape.peak)


def _cosine(shape: Shape) -> optax.Schedule:
    """To 0 along half a cosine (Loshchilov and Hutter, 2017)."""
    return optax.cosine_decay_schedule(shape.peak, shape.rest)


def _polynomial(shape: Shape) -> optax.Schedule:
    """To 0 with power 2 (You et al., 2017)."""
    return optax.polynomial_schedule(shape.peak, 0.0, 2, shape.rest)


def _step(shape: Shape) -> optax.Schedule:
    """Drops at the boundaries; one during the warm-up lowers the peak that the warm-up ends at."""
    drops: dict[int, float] = {}
    for boundary in shape.boundaries:
        at = max(boundary - shape.warmup, 0)
        drops[at] = drops.get(at, 1.0) * shape.factor
    return optax.piecewise_constant_schedule(shape.peak, drops)


def _warmup_stable_decay(shape: Shape) -> optax.Schedule:
    """Constant, then linear to 0 (Zhai et al., 2022)."""
    falling, stable = min(shape.decay, shape.rest), optax.constant_schedule(shape.peak)
    if not falling:
        return stable
    fall = optax.linear_schedule(shape.peak, 0.0, falling)
    return optax.join_schedules([stable, fall], [shape.rest - falling])


def _one_cycle(shape: Shape) -> optax.Schedule:
    """From 1/25 of the peak up to it and down to nothing, by half cosines (Smith, Topin, 2018)."""
    if not 0 < shape.warmup < shape.total:
        raise ConfigError(
            f"The schedule one_cycle rises for {shape.warmup} of {shape.total} steps; "
            "config.optimizer.warmup must leave some for both directions: '0.3' is usual."
        )
    return optax.cosine_onecycle_schedule(shape.total, shape.peak, shape.warmup / shape.total)


SCHEDULES: dict[str, Callable[[Shape], optax.Schedule]] = {
    "constant": _after_warmup(_constant),
    "cosine": _after_warmup(_cosine),
    "step": _after_warmup(_step),
    "polynomial": _after_warmup(_polynomial),
    "one_cycle": _one_cycle,
    "warmup_stable_decay": _after_warmup(_warmup_stable_decay),
}


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
      name: a key of `SCHEDULES`.
      learning_rate: the peak.
      total_steps: length of the run.
      warmup_steps: of the linear rise from 0; of the rise of `one_cycle`.
      boundaries: of `step`: the steps at which the rate is multiplied by `factor`.
      factor: of `step`.
      decay_steps: of `warmup_stable_decay`: how long before the end the rate starts to fall.

    Raises:
      ConfigError: there is no schedule of this name, or `one_cycle` has no room for both its
        directions.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"config.optimizer.schedule is {name!r}; it must be one of {', '.join(SCHEDULES)}."
        )
    shape = (learning_rate, total_steps, warmup_steps, boundaries, factor, decay_steps)
    return SCHEDULES[name](Shape(*shape))
