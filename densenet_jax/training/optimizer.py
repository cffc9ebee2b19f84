"""The optimisers, as chains of Optax.

A new optimiser is one function and one entry of `OPTIMIZERS`.
"""

import collections
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.masks import decay_mask, depth_factors, matrices, trained_mask


class Method(NamedTuple):
    """The options of an optimiser; each optimiser uses only some of them.

    Attributes:
      rate: the learning rate by step.
      momentum: the momentum of the gradients.
      nesterov: whether it is Nesterov momentum.
      moments: those of {"b1", "b2", "eps"} that are configured: the decays of the moments, and the
        number added to the root of the second one; the optimiser's own defaults replace the rest.
      weight_decay: the weight decay of kernels.
    """

    rate: optax.Schedule
    momentum: float
    nesterov: bool
    moments: dict[str, float]
    weight_decay: float

    @property
    def decay(self) -> optax.GradientTransformation:
        """Adds the weight decay of kernels to the updates."""
        return optax.add_decayed_weights(self.weight_decay, mask=decay_mask)


def _sgd(method: Method) -> optax.GradientTransformation:
    """Weight decay is added to the gradient, as in the paper's code."""
    sgd = optax.sgd(method.rate, momentum=method.momentum, nesterov=method.nesterov)
    return optax.chain(method.decay, sgd)


def _lars(method: Method) -> optax.GradientTransformation:
    """You et al., 2017; only the rates of kernels are adapted."""
    return optax.lars(
        method.rate,
        method.weight_decay,
        weight_decay_mask=decay_mask,
        trust_ratio_mask=decay_mask,
        momentum=method.momentum,
        nesterov=method.nesterov,
    )


def _adamw(method: Method) -> optax.GradientTransformation:
    """Loshchilov and Hutter, 2019; decoupled weight decay, times the learning rate."""
    decay = {"weight_decay": method.weight_decay, "mask": decay_mask}
    return optax.adamw(method.rate, **decay, **method.moments)


def _lion(method: Method) -> optax.GradientTransformation:
    """Chen et al., 2023; decoupled weight decay, times the learning rate; it has no epsilon."""
    betas = {key: value for key, value in method.moments.items() if key != "eps"}
    return optax.lion(method.rate, weight_decay=method.weight_decay, mask=decay_mask, **betas)


def _lamb(method: Method) -> optax.GradientTransformation:
    """You et al., 2020; decoupled weight decay, times the learning rate.

    Only the rates of kernels are adapted, as in the authors' code; optax.lamb adapts scales and
    biases, too.
    """
    return optax.chain(
        optax.scale_by_adam(**{"eps": 1e-6, **method.moments}),
        method.decay,
        optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        optax.scale_by_learning_rate(method.rate),
    )


def _muon(method: Method) -> optax.GradientTransformation:
    """Jordan et al., 2024; scaled to the rates of adamw as in Liu et al., 2025, eq. 4.

    Muon updates the kernels of convolutions; everything else is trained with adamw (with Nesterov
    momentum if set).  Weight decay is decoupled and applies to all kernels.  Optax's own would
    apply to every scale and bias, or leave out the classifier.
    """
    names = {"b1": "adam_b1", "b2": "adam_b2", "eps": "eps"}
    direction = optax.contrib.muon(
        -1.0,  # no sign change here: rate and sign are applied at the end of the chain
        beta=method.momentum,
        nesterov=method.nesterov,
        consistent_rms=0.2,  # the usual RMS of adamw's updates (Liu et al., 2025)
        muon_weight_dimension_numbers=matrices,
        **{names[key]: value for key, value in method.moments.items()},
    )
    return optax.chain(direction, method.decay, optax.scale_by_learning_rate(method.rate))


OPTIMIZERS: dict[str, Callable[[Method], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lamb": _lamb,
    "lars": _lars,
    "lion": _lion,
    "muon": _muon,
}


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
    """Returns an optimiser; disabled features add nothing to its state.

    Args:
      schedule: the learning rate by step.
      name: a key of `OPTIMIZERS`.
      momentum: of sgd, lars and muon.
      nesterov: whether their momentum is Nesterov's.
      betas: the decays of the moments of adamw, lamb, lion and muon's adamw; None: their defaults.
      epsilon: of adamw, lamb and muon's adamw; None: their defaults.
      weight_decay: applies to kernels only.
      clip_norm: the largest L2 norm of all gradients together; 0: no limit.
      layer_decay: the factor of the learning rate, and of the decay, from each part of the network
        to the one before it (see `masks.depth_factors`).
      frozen: parts of the network that do not train: `stem`, `block1`, ..., `norm`, `head`.

    Raises:
      ConfigError: there is no optimiser of this name.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"config.optimizer.name is {name!r}; it must be one of {', '.join(OPTIMIZERS)}."
        )
    moments = {} if betas is None else {"b1": betas[0], "b2": betas[1]}
    moments |= {} if epsilon is None else {"eps": epsilon}
    method = Method(schedule, momentum, nesterov, moments, weight_decay)
    optimizer = OPTIMIZERS[name](method)
    if clip_norm:
        optimizer = optax.chain(_clip(clip_norm), optimizer)
    if frozen:
        optimizer = optax.partition(
            {"frozen": optax.set_to_zero(), "trained": optimizer},
            functools.partial(trained_mask, frozen=tuple(frozen)),
        )
    if layer_decay != 1.0:
        optimizer = optax.chain(optimizer, _scale_by_depth(layer_decay))
    return optimizer


def global_norm(gradients: Any) -> jax.Array:
    """Returns the L2 norm of all numbers of a tree together, a scalar."""
    return optax.tree.norm(_joined(gradients))


def _joined(tree: Any) -> list[jax.Array]:
    """Returns the leaves of a tree in few arrays, for a sum over all of its numbers.

    Otherwise a sum over the gradients of DenseNet-121 takes 364 kernels on a GPU, one for each
    array.  They become one array, with numbers in names in their order, as in `block.gradient`.
    If a mesh may split them over devices, all vectors become one array, and other arrays are
    stacked with those of the same shape, which moves nothing.
    """
    if jax.sharding.get_abstract_mesh().shape.get("model", 1) == 1:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        leaves.sort(key=lambda leaf: _in_order(jax.tree_util.keystr(leaf[0])))
        return [jnp.concatenate([leaf.reshape(-1) for _, leaf in leaves])] if leaves else []
    alike: dict[Any, list[jax.Array]] = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        alike["vector" if leaf.ndim == 1 else leaf.shape].append(leaf)
    return [
        jnp.concatenate(leaves) if shape == "vector" else jnp.stack(leaves)
        for shape, leaves in alike.items()
    ]


def _in_order(name: str) -> list[str | int]:
    """Returns a key by which names sort with the numbers in them in their order."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def with_clock(state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Returns an optimiser's state in which the counter of every schedule is set to a step.

    Optax counts the updates of each schedule.  A non-finite step makes no update, so that count
    would lag behind, and the learning rate would never reach its final value.

    Args:
      state: the optimiser's state.
      step: number of training steps so far, int32 [].
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def at_step(node: Any) -> Any:
        if not is_schedule(node):
            return node
        return optax.ScaleByScheduleState(count=jnp.asarray(step, node.count.dtype))

    return jax.tree.map(at_step, state, is_leaf=is_schedule)


def _clip(largest: float) -> optax.GradientTransformation:
    """Returns `optax.clip_by_global_norm` with the norm of the check for finite numbers."""

    def clip(updates: Any, _: Any) -> Any:
        norm = global_norm(updates)
        small = norm < largest
        return jax.tree.map(
            lambda x: jnp.where(small, x, x / norm.astype(x.dtype) * largest), updates
        )

    return optax.stateless(clip)


def _scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Returns the transformation that multiplies updates by `masks.depth_factors`."""

    def scale(updates: Any, params: Any) -> Any:
        factors = depth_factors(updates if params is None else params, decay)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    return optax.stateless(scale)
