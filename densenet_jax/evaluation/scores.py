"""Computes a model's predictions for every example of a split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.tasks.losses import Loss
from densenet_jax.tasks.task import Task
from densenet_jax.training.eval_loop import gather

Scores = dict[str, np.ndarray]


Score = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


def scorer(task: Task, loss: Loss, predict: Callable[[Any, jax.Array], jax.Array]) -> Score:
    """Returns the compiled function from variables and a batch to its scores and its mask.

    Args:
      task: what the model is trained for.
      loss: the loss for evaluation, see `settings.make_loss`.
      predict: maps (variables, images) to logits [B, C], see `test_time_augmentation.predictor`.
    """

    @jax.jit
    def score(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits, label = predict(variables, batch["image"]), batch["label"]
        losses = loss(logits, task.targets(label, logits.shape[-1]))
        found = {"mask": batch["mask"], "label": label, "loss": losses.astype(jnp.float32)}
        found["logits"] = logits
        return {**found, **task.scores(logits, label)}

    return score


def collect(score: Score, variables: Any, batches: Iterable[dict[str, jax.Array]]) -> Scores:
    """Returns the scores of all examples of `batches` whose mask is True, each exactly once.

    Args:
      score: see `scorer`.
      variables: the model's variables, {"params", "batch_stats"}.
      batches: one pass over the split, as `data.reading.pipeline.eval_batches` returns it.

    Returns:
      {"index": the examples' numbers in the split, int [N]; "label": [N]; "loss": float32 [N];
       "logits": [N, C]; and the arrays of `task.scores`, [N, ...]}.
    """
    # Results stay on the device until the end: the loop never waits for them.
    return gather([score(variables, batch) for batch in batches])
