"""Averages the predictions of several networks for the same examples."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np

from densenet_jax.evaluation.scores import Scores
from densenet_jax.evaluation.splits import Assessed
from densenet_jax.scores.labels import ScoresError
from densenet_jax.tasks.losses import Loss
from densenet_jax.tasks.task import Task

# Keys of the data that all networks share; how images are prepared is each network's own.
SHARED = (
    *("name", "data_dir", "train_split", "eval_split", "holdout", "classes", "path_column"),
    *("label_columns", "uncertain", "split_column", "group_column", "group", "folds", "fold"),
)


def with_data_of(
    config: ml_collections.ConfigDict, first: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Returns the configuration of a network, to evaluate it on the data of another one.

    Args:
      config: the network's configuration.
      first: the configuration whose data are used.
    """
    config = config.copy_and_resolve_references()
    for key in SHARED:
        config.data[key] = first.data[key]
    return config


def average(task: Task, loss: Loss, members: Sequence[Assessed]) -> Assessed:
    """Returns the evaluation of the mean of the probabilities (or numbers) of several networks.

    Args:
      task: what the networks were trained for.
      loss: the loss for evaluation.
      members: the evaluation of each network on the same split.

    Raises:
      ScoresError: the networks could not read the same examples.
    """
    first = members[0]
    for member in members[1:]:
        if not np.array_equal(member.scores["index"], first.scores["index"]):
            raise ScoresError(
                "the networks did not read the same examples of the split; repair the images that "
                "some of them could not read."
            )
    stacked = jnp.stack([jnp.asarray(m.scores["logits"], jnp.float32) for m in members])
    logits, label = task.combine_views(stacked), jnp.asarray(first.scores["label"])
    losses = loss(logits, task.targets(label, logits.shape[-1]))
    found: Scores = {
        **{key: first.scores[key] for key in ("index", "label")},
        "logits": np.asarray(logits),
        "loss": np.asarray(losses, np.float32),
        **{key: np.asarray(value) for key, value in task.scores(logits, label).items()},
    }
    source = first.source
    groups = source.groups_of(found["index"])
    kept = {key: first.record[key] for key in ("data", "split", "crops", "flip")}
    record = {**kept, **task.summary(found, source.class_names, None, groups)}
    return dataclasses.replace(first, record=record, scores=found)
