"""Evaluation of a whole split; every example counts exactly once, whatever the batch size."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densenet_jax.tasks.losses import Loss, example_weights
from densenet_jax.tasks.task import Metrics, Task

Batch = dict[str, jax.Array]
Answers = dict[str, jax.Array]  # of `Task.answers`, arrays [B, ...]


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
    answers: list[Answers]


def make_eval_step(
    model: nn.Module, preprocess: Callable[[jax.Array], jax.Array], task: Task, loss: Loss
) -> Callable[[dict[str, Any], Batch], tuple[Metrics, Answers]]:
    """Returns the function from variables and a masked batch to `sums` and `Task.answers`.

    Args:
      model: maps images to logits.
      preprocess: maps uint8 images [B, H, W, C] to normalised images.
      task: what the network is trained for.
      loss: the run's loss, without what only training adds to it (smoothing, a teacher).
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> tuple[Metrics, Answers]:
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
      labels: of the same examples, [B] or [B, C].
      mask: whether an example counts, bool [B].

    Returns:
      {"loss": weighted by `losses.example_weights`; "weight": the sum of these weights; the keys of
      `Task.measure`; "examples": how many count; "nonfinite": how many of these have a logit that
      is not finite}.
    """
    targets = task.targets(labels, logits.shape[-1])
    weigh = example_weights(task.name)
    weights = jnp.ones(len(logits)) if weigh is None else weigh(targets)
    values = {"loss": loss(logits, targets) * weights, "weight": weights}
    values |= task.measure(logits, labels)
    finite = jnp.isfinite(logits).all(axis=-1)
    return {
        **{name: jnp.sum(jnp.where(mask, value, 0)) for name, value in values.items()},
        "examples": jnp.sum(mask),
        "nonfinite": jnp.sum(mask & ~finite),
    }


def evaluate(
    eval_step: Callable[[Any, Batch], tuple[Metrics, Answers]],
    networks: Sequence[Any],
    batches: Iterable[Batch],
    task: Task,
) -> list[tuple[Metrics, list[Answers]]]:
    """Returns the metrics of some networks over all examples of a split, and their answers.

    The metrics are the means of loss and metrics, `Task.of_split`, and "examples", the number of
    examples.  If the logits of any example are not finite, every metric is NaN, since such a
    network has no accuracy, and "nonfinite" is the number of these examples.  Otherwise there is
    no "nonfinite".

    Args:
      eval_step: maps (variables, batch) to `sums` and `Task.answers`, see `make_eval_step`.
      networks: the variables of each network.
      batches: one pass over the split, with "mask", as `data.reading.pipeline.eval_batches`.
      task: what the networks are trained for.
    """
    # Each batch's results stay on the device until the end, so that the loop never waits for them.
    found = [[eval_step(variables, batch) for variables in networks] for batch in batches]
    results = []
    for own in zip(*found, strict=True):
        answers = [answer for _, answer in own]
        parts = jax.device_get([part for part, _ in own])
        total = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
        metrics = _means(total, task)
        if "nonfinite" not in metrics and type(task).of_split is not Task.of_split:
            metrics |= task.of_split(gather(answers))
        results.append((metrics, answers))
    return results


def _means(total: dict[str, float], task: Task) -> Metrics:
    """Returns the metrics of the sums over all batches, see `sums` and `evaluate`."""
    count, nonfinite = int(total.pop("examples")), int(total.pop("nonfinite"))
    weight, loss = total.pop("weight"), total.pop("loss")
    if nonfinite:
        nothing = {metric.key: float("nan") for metric in task.metrics}
        return nothing | {"examples": count, "nonfinite": nonfinite}
    means = {name: value / count for name, value in total.items()}
    # Without any known label there is no loss.
    return {"loss": loss / weight if weight else float("nan"), **means, "examples": count}


def gather(results: Iterable[Answers]) -> dict[str, np.ndarray]:
    """Returns the rows of all batches whose "mask" is True, on the host.

    Args:
      results: of each batch of a split, in order: {"mask": bool [B], and arrays [B, ...]}.

    Returns:
      {"index": the examples' numbers in the split, int [N]; and the arrays without "mask",
      [N, ...]}.
    """
    parts = [_on_host(result) for result in results]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mask = merged.pop("mask")
    return {"index": np.flatnonzero(mask), **{k: value[mask] for k, value in merged.items()}}


def _on_host(result: Answers) -> dict[str, np.ndarray]:
    """Returns global arrays as NumPy arrays, with the rows of all processes."""
    if jax.process_count() == 1:
        return jax.device_get(result)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(result, tiled=True)
