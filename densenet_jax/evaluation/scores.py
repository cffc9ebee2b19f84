"""A model's scores of every example of a split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.tasks.losses import Loss
from densenet_jax.tasks.task import Task

Scores = dict[str, np.ndarray]


def collect(
    task: Task,
    loss: Loss,
    predict: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    batches: Iterable[dict[str, jax.Array]],
) -> Scores:
    """Returns the scores of all examples of `batches` whose mask is True, each exactly once.

    Args:
      task: what the model is trained for.
      loss: the loss for evaluation, see `settings.make_loss`.
      predict: maps (variables, images) to logits [B, C], see `test_time_augmentation.predictor`.
      variables: the model's variables, {"params", "batch_stats"}.
      batches: one pass over the split, as `data.reading.pipeline.eval_batches` returns it.

    Returns:
      {"index": the examples' numbers in the split, int [N]; "label": [N]; "loss": float32 [N];
       and the arrays of `task.scores`, [N, ...]}.
    """

    @jax.jit
    def score(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits, label = predict(variables, batch["image"]), batch["label"]
        losses = loss(logits, task.targets(label, logits.shape[-1]))
        found = {"mask": batch["mask"], "label": label, "loss": losses.astype(jnp.float32)}
        return {**found, **task.scores(logits, label)}

    # Results stay on the device until the end: the loop never waits for them.
    return gather([score(variables, batch) for batch in batches])


def gather(results: Iterable[dict[str, jax.Array]]) -> Scores:
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


def _on_host(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Returns global arrays as NumPy arrays, with the rows of all processes."""
    if jax.process_count() == 1:
        return jax.device_get(result)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(result, tiled=True)
