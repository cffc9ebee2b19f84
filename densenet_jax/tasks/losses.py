"""The losses: functions of logits and targets that return the loss of each example.

A new loss is one function and one entry of `LOSSES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

# (logits [B, C] in at least float32, targets [B, C]) -> losses [B]; the losses of multilabel and
# regression return those of every output, [B, C], from which `make_loss` takes the mean.
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# A loss that training minimises: a `Loss`, or the one of `distillation.distilling`, whose second
# argument is (targets [B, C], teacher's logits [B, C], whether to use them [B]).
TrainLoss = Callable[[jax.Array, Any], jax.Array]
# targets [B, C] -> the weight of each example in a mean of losses, [B]
Weigh = Callable[[jax.Array], jax.Array]

FOCUS = 2.0  # gamma of the focal loss, as in the paper


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the softmax cross entropy of every example, [B].

    Args:
      logits: [B, C].
      targets: distributions over the classes [B, C].
    """
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the sigmoid cross entropy of every label of every example, [B, C].

    Args:
      logits: [B, C].
      targets: the probability of each label [B, C], each from 0 to 1.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the sum over the classes of the sigmoid cross entropy, [B].

    Beyer et al., 2020; Wightman et al., 2021, take the mean over the classes and optimise with
    LAMB, for which the factor makes no difference.

    Args:
      logits: [B, C].
      targets: the probability of each class [B, C], each from 0 to 1.
    """
    return sigmoid_cross_entropy(logits, targets).sum(axis=-1)


def focal(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross entropy of every example, less for what is easy (Lin et al., 2017), [B].

    The cross entropy of class c has the factor (1 - p_c)^2, where p is the softmax of the logits.

    Args:
      logits: [B, C].
      targets: distributions over the classes [B, C].
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(log_p)) ** FOCUS * log_p, axis=-1)


def sigmoid_focal(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the focal loss of every label of every example (Lin et al., 2017), [B, C].

    Without the paper's alpha, which `class_weights` replaces.

    Args:
      logits: [B, C].
      targets: the probability of each label [B, C], each from 0 to 1.
    """
    return optax.sigmoid_focal_loss(logits, targets, alpha=None, gamma=FOCUS)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the squared error of every number of every example, [B, C]."""
    return optax.squared_error(outputs, targets)


def huber(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns Huber's loss (1964): half the squared error, linear from an error of 1 on, [B, C]."""
    return optax.huber_loss(outputs, targets)


# Name of the loss -> {name of a task that it fits: function}
LOSSES: dict[str, dict[str, Loss]] = {
    "cross_entropy": {"classification": cross_entropy},
    "binary_cross_entropy": {
        "classification": binary_cross_entropy,
        "multilabel": sigmoid_cross_entropy,
    },
    "focal": {"classification": focal, "multilabel": sigmoid_focal},
    "huber": {"regression": huber},
    "squared_error": {"regression": squared_error},
}


def make_loss(
    name: str,
    task: str = "classification",
    *,
    smoothing: float = 0.0,
    threshold: float = 0.0,
    positive_weights: Sequence[float] = (),
) -> Loss:
    """Returns a loss that computes in at least float32 and prepares its targets.

    The loss of an example with several labels or numbers is the mean over those that are known
    (whose target is not NaN), and 0 if none is; `example_weights` gives every known label the same
    weight in a mean over examples.

    Args:
      name: a key of `LOSSES`.
      task: what the network is trained for, a key of `LOSSES[name]`.
      smoothing: share of each target spread evenly over all classes (Szegedy et al., 2016); for
        several labels, over present and absent.
      threshold: if not 0, a class whose share of an image is greater counts as wholly present, and
        any other as absent (for mixed images; Wightman et al., 2021, take 0.2).
      positive_weights: for several labels, the factor of the loss where a label is present, one
        for each label; (): 1.

    Raises:
      ValueError: there is no loss of this name for the task.
    """
    fitting = [key for key, functions in LOSSES.items() if task in functions]
    if name not in fitting:
        raise ValueError(f"loss is {name!r}; it must be one of {', '.join(fitting)}.")
    function = LOSSES[name][task]

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if threshold:
            present = (targets > threshold).astype(logits.dtype)
            targets = jnp.where(jnp.isnan(targets), targets, present)
        if task == "classification":
            return function(logits, optax.smooth_labels(targets, smoothing))
        targets = targets + smoothing * (0.5 - targets)
        known = ~jnp.isnan(targets)
        targets = jnp.where(known, targets, 0)  # no NaN reaches the gradient
        losses = function(logits, targets)
        if positive_weights:
            losses *= 1 + targets * (jnp.asarray(positive_weights, losses.dtype) - 1)
        count = jnp.maximum(known.sum(axis=-1), 1)
        return jnp.sum(jnp.where(known, losses, 0), axis=-1) / count

    return loss


def example_weights(task: str, class_weights: Sequence[float] = ()) -> Weigh | None:
    """Returns the function from targets [B, C] to weights of examples [B]; None: all are equal.

    Args:
      task: "classification": an example weighs as its class, or as the mean of its classes if it
        is mixed. Other tasks: it weighs as many as it has known labels or numbers.
      class_weights: of classification, one for each class; (): all weigh the same.
    """
    if task != "classification":
        return lambda targets: jnp.sum(~jnp.isnan(targets), axis=-1).astype(jnp.float32)
    if not class_weights:
        return None
    return lambda targets: targets @ jnp.asarray(class_weights, targets.dtype)
