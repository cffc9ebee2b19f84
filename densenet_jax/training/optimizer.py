"""The Optax chain and the learning-rate schedules."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from densenet_jax.models.parts import parts
from densenet_jax.training.errors import ConfigError


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      name: `cosine` to 0, `step`, or `constant`; each after a linear warm-up from 0.
      learning_rate: the peak.
      boundaries: of `step`: the shares of the run after which the rate is multiplied by `factor`.
    """
    rest = max(total_steps - warmup_steps, 1)
    if name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, rest)
    elif name == "step":
        drops = {round(share * total_steps) - warmup_steps: factor for share in boundaries}
        schedule = optax.piecewise_constant_schedule(learning_rate, drops)
    elif name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    else:
        raise ConfigError(
            f"config.optimizer.schedule is {name!r}; it must be 'cosine', 'step' or 'constant'."
        )
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Returns SGD with momentum; weight decay is added to the gradient, as in the paper's code.

    Args:
      frozen: parts of the network that do not train: `stem`, `block1`, ..., `norm`, `head`.
    """
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
    if not frozen:
        return optimizer

    def labels(params: Any) -> Any:
        names = parts(params)
        unknown = set(frozen) - set(jax.tree.leaves(names))
        if unknown:
            raise ConfigError(
                f"config.optimizer.frozen has {', '.join(sorted(map(str, unknown)))}; "
                f"the parts of this model are {', '.join(sorted(set(jax.tree.leaves(names))))}."
            )
        return jax.tree.map(lambda name: "frozen" if name in frozen else "trained", names)

    return optax.partition({"frozen": optax.set_to_zero(), "trained": optimizer}, labels)


def decay_mask(params: Any) -> Any:
    """Returns True for the kernels of convolutions and classifier, False for scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
