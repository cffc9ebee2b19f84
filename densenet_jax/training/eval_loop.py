"""Evaluation of a whole split; every example counts exactly once, whatever the batch size."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.tasks.losses import Loss
from densenet_jax.tasks.task import Metrics, Task

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The results of a run's state on the whole evaluation split.

    Attributes:
      step: the state's step.
      metrics: as `evaluate` returns them.
      answers: `Task.answers` of each batch, on the devices.
    """

    step: int
    metrics: Metrics
    answers: list[dict[str, jax.Array]]


def make_eval_step(
    model: nn.Module, preprocess: Callable[[jax.Array], jax.Array], task: Task, loss: Loss
) -> Callable[[dict[str, Any], Batch], tuple[Metrics, Metrics]]:
    """Returns the function from variables and a masked batch to `sums` and `Task.answers`.

    Args:
      model: maps images to logits.
      preprocess: maps uint8 images [B, H, W, C] to normalised images.
      task: what the network is trained for.
      loss: the run's loss, without what only training adds to it (smoothing, a teacher).
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> tuple[Metrics, Metrics]:
        logits = cast(jax.Array, model.apply(variables, preprocess(batch["image"])))
        found = (logits, batch["label"], batch["mask"])
        return sums(task, loss, *found), task.answers(*found)

    return jax.jit(eval_step)


def sums(task: Task, loss: Loss, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Metrics:
    """Returns the sums of loss and metrics over the examples of a batch where the mask is True.

    Args:
      task: what the network is trained for.
      loss: the loss for evaluation.
      logits: [B, C].
      labels: of the same examples, [B].
      mask: whether an example counts, bool [B].

    Returns:
      {"loss", the keys of `Task.measure`, "examples": how many count, "nonfinite": how many of
      these have a logit that is not finite}.
    """
    losses = loss(logits, task.targets(labels, logits.shape[-1]))
    values = {"loss": losses, **task.measure(logits, labels)}
    finite = jnp.isfinite(logits).all(axis=-1)
    return {
        **{name: jnp.sum(jnp.where(mask, value, 0)) for name, value in values.items()},
        "examples": jnp.sum(mask),
        "nonfinite": jnp.sum(mask & ~finite),
    }


def evaluate(
    eval_step: Callable[[Any, Any], Metrics], variables: Any, batches: Iterable[Any]
) -> Metrics:
    """Returns the means of loss and metrics over all examples, and "examples", their number.

    If the logits of any example are not finite, every mean is NaN, since such a network has no
    accuracy, and "nonfinite" is the number of these examples.  Otherwise there is no "nonfinite".

    Args:
      eval_step: maps (variables, batch) to `sums`.
      variables: the model's variables, or whatever else `eval_step` takes.
      batches: one pass over the split, with "mask", as `data.reading.pipeline.eval_batches`.
    """
    # Each batch's sums stay on the device until the end, so that the loop never waits for them.
    found = [eval_step(variables, batch) for batch in batches]
    total = {name: sum(float(s[name]) for s in jax.device_get(found)) for name in found[0]}
    count, nonfinite = int(total.pop("examples")), int(total.pop("nonfinite"))
    if nonfinite:
        return {name: float("nan") for name in total} | {"examples": count, "nonfinite": nonfinite}
    return {name: value / count for name, value in total.items()} | {"examples": count}
