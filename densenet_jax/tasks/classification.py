"""Metrics, and their sum over a whole split."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A state of a run on the whole evaluation split.

    Attributes:
      step: of the state.
      metrics: as `evaluate` returns them.
      answers: those of each batch, see `answers`, on the devices.
    """

    step: int
    metrics: Metrics
    answers: list[dict[str, jax.Array]]


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the loss of every example, [B], in at least float32.

    Args:
      logits: [B, classes].
      targets: labels [B], integers; or distributions over the classes [B, classes].
      smoothing: share of the target spread evenly over all classes (Szegedy et al., 2016).
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Returns for every example whether its label is among the k highest logits, bool [B].

    A label whose logit, or any other, is NaN is a miss: a broken model must not look perfect.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return jnp.sum(~(logits <= own), axis=1) < k


def sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Metrics:
    """Returns the sums of loss, top-1 and top-5 hits over the examples where mask [B] is True."""
    return {
        "loss": jnp.sum(jnp.where(mask, cross_entropy(logits, labels), 0)),
        "top1": jnp.sum(hits(logits, labels, 1) & mask),
        "top5": jnp.sum(hits(logits, labels, 5) & mask),
        "examples": jnp.sum(mask),
    }


def answers(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns what a model says about each example.

    Args:
      logits: [B, classes].
      labels: [B], integers.
      mask: bool [B]; handed through.

    Returns:
      the (at most five) likeliest `classes` [B, k], their `probabilities`, float32 [B, k], that of
      the label, `own` [B], `labels` and `mask`.
    """
    chances = jax.nn.softmax(logits.astype(jnp.float32))
    probabilities, classes = jax.lax.top_k(chances, min(5, chances.shape[1]))
    own = jnp.take_along_axis(chances, labels[:, None], axis=1)[:, 0]
    found = {"classes": classes, "probabilities": probabilities, "own": own}
    return {**found, "labels": labels, "mask": mask}


def evaluate(
    eval_step: Callable[[Any, Any], Metrics], variables: Any, batches: Iterable
) -> Metrics:
    """Returns mean loss, top-1 and top-5 (fractions) over batches, and the number of examples.

    Args:
      eval_step: maps (variables, batch) to `sums`.
      batches: with `mask`, as `data.pipeline.eval_batches` makes them.
    """
    # Each batch's sums stay on the device until the end: the loop never waits for them.
    total = [eval_step(variables, batch) for batch in batches]
    total = {name: sum(float(s[name]) for s in jax.device_get(total)) for name in total[0]}
    count = int(total.pop("examples"))
    return {name: value / count for name, value in total.items()} | {"examples": count}
