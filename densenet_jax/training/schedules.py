"""Learning rates as functions of the step, and durations such as "5 epochs".

A new schedule is one function and one entry of `SCHEDULES`.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import optax

from densenet_jax.training.errors import ConfigError

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE]\+?\d+)?|\.\d+)\s*(epochs?|steps?|examples?)?\s*")


@dataclass(frozen=True)
class Units:
    """The conversion of durations to steps.

    Attributes:
      total_steps: number of steps in the whole run.
      steps_per_epoch: a fraction if the batch size does not divide the data.
      batch_size: number of examples in a step, over all devices.
    """

    total_steps: int
    steps_per_epoch: float
    batch_size: int

    def steps(self, duration: str | float, key: str = "a duration") -> int:
        """Converts a duration to steps.

        Args:
          duration: "5 epochs", "500 steps", "1e6 examples"; a number without unit is a share of
            the run, from 0 to 1.
          key: the configuration's key, for the message.

        Raises:
          ConfigError: the duration has another form.
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
    """Returns a duration's number and unit ("epoch", "step", "example", or "": a share of the run).

    Args:
      duration: see `Units.steps`.
      key: the configuration's key, for the message.

    Raises:
      ConfigError: the duration has another form.
    """
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
    """The options of a schedule; each schedule uses only some of them.  Lengths are in steps.

    Attributes:
      peak: the largest learning rate.
      total: the length of the run.
      warmup: the length of the warm-up.
      boundaries: steps, from the start of the run, at which `step` multiplies the rate by `factor`.
      factor: see `boundaries`.
      decay: the length of the last phase of `warmup_stable_decay`.
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
    """Adds a linear warm-up from 0 before a schedule that starts at the peak."""

    def schedule(shape: Shape) -> optax.Schedule:
        if not shape.warmup:
            return then(shape)
        warmup = optax.linear_schedule(0.0, shape.peak, shape.warmup)
        return optax.join_schedules([warmup, then(shape)], [shape.warmup])

    return schedule


def _constant(shape: Shape) -> optax.Schedule:
    return optax.constant_schedule(shape.peak)


def _cosine(shape: Shape) -> optax.Schedule:
    """Falls to 0 along half a cosine (Loshchilov and Hutter, 2017)."""
    return optax.cosine_decay_schedule(shape.peak, shape.rest)


def _polynomial(shape: Shape) -> optax.Schedule:
    """Falls to 0 as a polynomial of degree 2 (You et al., 2017)."""
    return optax.polynomial_schedule(shape.peak, 0.0, 2, shape.rest)


def _step(shape: Shape) -> optax.Schedule:
    """Drops at the boundaries; one within the warm-up lowers the rate at which the warm-up ends."""
    drops: dict[int, float] = {}
    for boundary in shape.boundaries:
        at = max(boundary - shape.warmup, 0)
        drops[at] = drops.get(at, 1.0) * shape.factor
    return optax.piecewise_constant_schedule(shape.peak, drops)


def _warmup_stable_decay(shape: Shape) -> optax.Schedule:
    """Is constant, then falls linearly to 0 (Zhai et al., 2022)."""
    falling, stable = min(shape.decay, shape.rest), optax.constant_schedule(shape.peak)
    if not falling:
        return stable
    fall = optax.linear_schedule(shape.peak, 0.0, falling)
    return optax.join_schedules([stable, fall], [shape.rest - falling])


def _one_cycle(shape: Shape) -> optax.Schedule:
    """Rises from 1/25 of the peak, then falls to almost 0: half cosines (Smith and Topin, 2018)."""
    if not 0 < shape.warmup < shape.total:
        raise ConfigError(
            f"The schedule one_cycle would rise for {shape.warmup} of {shape.total} steps, but it "
            "needs steps for both its rise and its fall; config.optimizer.warmup='0.3' is usual."
        )
    # The same as optax.cosine_onecycle_schedule, except that its warm-up may be a step shorter: it
    # takes a share of the run, and rounds down.
    factors = {shape.warmup: 25.0, shape.total: 1 / (25.0 * 1e4)}
    return optax.piecewise_interpolate_schedule("cosine", shape.peak / 25.0, factors)


SCHEDULES: dict[str, Callable[[Shape], optax.Schedule]] = {
    "constant": _after_warmup(_constant),
    "cosine": _after_warmup(_cosine),
    "step": _after_warmup(_step),
    "polynomial": _after_warmup(_polynomial),
    "one_cycle": _one_cycle,
    "warmup_stable_decay": _after_warmup(_warmup_stable_decay),
}
# A restarted schedule has no warm-up; what is left of `one_cycle` is a cosine.
_RESTARTED = SCHEDULES | {"one_cycle": SCHEDULES["cosine"]}


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    decay_steps: int = 0,
    restarts: Sequence[int] = (),
    restart_factor: float = 1.0,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      name: a key of `SCHEDULES`.
      learning_rate: the peak.
      total_steps: length of the run.
      warmup_steps: length of the linear rise from 0, or of the rise of `one_cycle`.
      boundaries: for `step`: the steps at which the rate is multiplied by `factor`.
      factor: for `step`.
      decay_steps: for `warmup_stable_decay`: number of steps before the end at which the rate
        starts to fall.
      restarts: steps at which the schedule starts again, at its peak and without a warm-up, to end
        at the next restart or the end of the run (Loshchilov and Hutter, 2017).
      restart_factor: factor of the peak at each restart.

    Raises:
      ConfigError: there is no schedule of this name, `one_cycle` has no steps left for its rise or
        its fall, or the restarts do not follow the warm-up and each other.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"config.optimizer.schedule is {name!r}; it must be one of {', '.join(SCHEDULES)}."
        )
    starts = [restart for restart in restarts if restart < total_steps]
    if any(later <= earlier for earlier, later in itertools.pairwise([warmup_steps, *starts])):
        raise ConfigError(
            f"config.optimizer.restarts are steps {', '.join(map(str, starts))} of the run; the "
            f"first must be after the warm-up of {warmup_steps} steps, and each after the one "
            "before it."
        )
    first, *later = itertools.pairwise([0, *starts, total_steps])
    shape = Shape(learning_rate, first[1], warmup_steps, boundaries, factor, decay_steps)
    cycles = [SCHEDULES[name](shape)]
    for start, end in later:
        peak = learning_rate * restart_factor ** len(cycles)
        inside = [boundary - start for boundary in boundaries if boundary > start]
        shape = Shape(peak, end - start, 0, inside, factor, decay_steps)
        cycles.append(_RESTARTED[name](shape))
    return optax.join_schedules(cycles, starts)
