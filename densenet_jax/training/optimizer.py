"""The Optax chain: what becomes of the gradients."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
import optax.contrib

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.masks import decay_mask, depth_factors, matrices, trained_mask

OPTIMIZERS = ("sgd", "adamw", "lamb", "lars", "lion", "muon")


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    nesterov: bool = True,
    betas: Sequence[float] | None = None,
    epsilon: float | None = None,
    weight_decay: float = 1e-4,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Returns an optimiser; what is off leaves no trace in its state.

    Args:
      schedule: the learning rate.
      name: `sgd` (weight decay is added to the gradient, as in the paper's code), `lars` (You et
        al., 2017), `adamw` (Loshchilov and Hutter, 2019), `lamb` (You et al., 2020), `lion` (Chen
        et al., 2023) or `muon` (Jordan et al., 2024; scaled to rates of adamw as by Liu et al.,
        2025, eq. 4), the last four with decoupled weight decay, times the learning rate.  Muon is
        for kernels of convolutions; what is no such matrix trains with adamw, Nesterov's if set.
      momentum, nesterov: of sgd, lars and muon.
      betas, epsilon: of adamw, lamb, lion (which has no epsilon) and muon's adamw; None: the
        method's own.
      weight_decay: of kernels alone; lars and lamb also adapt the rates of kernels alone.
      clip_norm: the largest L2 norm of all gradients together; 0: any.
      layer_decay: the factor of the learning rate from each part of the network to the one before
        it (see `masks.depth_factors`), of the decay's too.
      frozen: parts of the network that do not train: `stem`, `block1`, ..., `norm`, `head`.
    """
    optimizer = _method(name, schedule, momentum, nesterov, betas, epsilon, weight_decay)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if frozen:
        optimizer = optax.partition(
            {"frozen": optax.set_to_zero(), "trained": optimizer},
            functools.partial(trained_mask, frozen=tuple(frozen)),
        )
    if layer_decay != 1.0:
        optimizer = optax.chain(optimizer, _scale_by_depth(layer_decay))
    return optimizer


def _method(
    name: str,
    schedule: optax.Schedule,
    momentum: float,
    nesterov: bool,
    betas: Sequence[float] | None,
    epsilon: float | None,
    weight_decay: float,
) -> optax.GradientTransformation:
    given: dict[str, Any] = {} if betas is None else {"b1": betas[0], "b2": betas[1]}
    given |= {} if epsilon is None or name == "lion" else {"eps": epsilon}
    decay = optax.add_decayed_weights(weight_decay, mask=decay_mask)
    if name == "sgd":
        return optax.chain(decay, optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
    if name == "lars":
        return optax.lars(
            schedule,
            weight_decay,
            weight_decay_mask=decay_mask,
            trust_ratio_mask=decay_mask,
            momentum=momentum,
            nesterov=nesterov,
        )
    if name == "adamw":
        return optax.adamw(schedule, weight_decay=weight_decay, mask=decay_mask, **given)
    if name == "lion":
        return optax.lion(schedule, weight_decay=weight_decay, mask=decay_mask, **given)
    if name == "lamb":  # optax.lamb adapts scales and biases, too, which its authors leave out
        return optax.chain(
            optax.scale_by_adam(**{"eps": 1e-6, **given}),
            decay,
            optax.masked(optax.scale_by_trust_ratio(), decay_mask),
            optax.scale_by_learning_rate(schedule),
        )
    if name == "muon":  # by itself it decays every scale and bias or no classifier
        names = {"b1": "adam_b1", "b2": "adam_b2", "eps": "eps"}
        direction = optax.contrib.muon(
            -1.0,  # upwards: the rate, and the sign, come last
            beta=momentum,
            nesterov=nesterov,
            consistent_rms=0.2,  # of the elements, as adamw's usually are (Liu et al., 2025)
            muon_weight_dimension_numbers=matrices,
            **{names[key]: value for key, value in given.items()},
        )
        return optax.chain(direction, decay, optax.scale_by_learning_rate(schedule))
    raise ConfigError(
        f"config.optimizer.name is {name!r}; it must be one of {', '.join(OPTIMIZERS)}."
    )


def _scale_by_depth(decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        factors = depth_factors(updates if params is None else params, decay)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    return optax.stateless(scale)
