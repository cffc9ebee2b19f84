"""What a training step minimises, for every example of its batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from densenet_jax.tasks import classification

# (logits [B, classes], targets [B, classes]) -> losses [B]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
LOSSES = ("cross_entropy", "binary_cross_entropy")


def make_loss(name: str, *, smoothing: float = 0.0, threshold: float = 0.0) -> Loss:
    """Returns a loss by its name.

    Args:
      smoothing: share of the target spread evenly over all classes (Szegedy et al., 2016).
      threshold: see `binary_cross_entropy`.

    Raises:
      ValueError: there is no loss of this name.
    """
    if name == "cross_entropy":
        return functools.partial(classification.cross_entropy, smoothing=smoothing)
    if name == "binary_cross_entropy":
        return functools.partial(binary_cross_entropy, smoothing=smoothing, threshold=threshold)
    raise ValueError(f"loss is {name!r}; it must be one of {', '.join(LOSSES)}.")


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, smoothing: float = 0.0, threshold: float = 0.0
) -> jax.Array:
    """Returns the sum over the classes of "is it this class?", [B], in at least float32.

    Beyer et al., 2020; Wightman et al., 2021, who take the mean over the classes and optimise with
    LAMB, to which the factor makes no difference.

    Args:
      logits: [B, classes].
      targets: distributions over the classes [B, classes].
      smoothing: as of `make_loss`.
      threshold: a class whose share is greater counts as wholly there (for images that are mixed:
        Wightman et al., 2021, take 0.2); 0: shares are targets as they are.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if threshold:
        targets = (targets > threshold).astype(logits.dtype)
    targets = optax.smooth_labels(targets, smoothing)
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
