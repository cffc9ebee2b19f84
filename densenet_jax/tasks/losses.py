"""The losses: functions of logits and targets that return the loss of each example.

A new loss is one function and one entry of `LOSSES`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# (logits [B, C] in at least float32, targets [B, C]) -> losses [B]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# A loss that training minimises: a `Loss`, or the one of `distillation.distilling`, whose second
# argument is (targets [B, C], teacher's logits [B, C], whether to use them [B]).
TrainLoss = Callable[[jax.Array, Any], jax.Array]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the softmax cross entropy of every example, [B].

    Args:
      logits: [B, C].
      targets: distributions over the classes [B, C].
    """
    return optax.softmax_cross_entropy(logits, targets)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the sum over the classes of the sigmoid cross entropy, [B].

    Beyer et al., 2020; Wightman et al., 2021, take the mean over the classes and optimise with
    LAMB, for which the factor makes no difference.

    Args:
      logits: [B, C].
      targets: the probability of each class [B, C], each from 0 to 1.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


class Entry(NamedTuple):
    """A loss, and the names of the tasks that it fits."""

    function: Loss
    tasks: tuple[str, ...]


LOSSES: dict[str, Entry] = {
    "cross_entropy": Entry(cross_entropy, ("classification",)),
    "binary_cross_entropy": Entry(binary_cross_entropy, ("classification",)),
}


def make_loss(name: str, *, smoothing: float = 0.0, threshold: float = 0.0) -> Loss:
    """Returns a loss that computes in at least float32 and prepares its targets.

    Args:
      name: a key of `LOSSES`.
      smoothing: share of each target spread evenly over all classes (Szegedy et al., 2016).
      threshold: if not 0, a class whose share of an image is greater counts as wholly present, and
        any other as absent (for mixed images; Wightman et al., 2021, take 0.2).

    Raises:
      ValueError: there is no loss of this name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss is {name!r}; it must be one of {', '.join(LOSSES)}.")
    function = LOSSES[name].function

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if threshold:
            targets = (targets > threshold).astype(logits.dtype)
        return function(logits, optax.smooth_labels(targets, smoothing))

    return loss
