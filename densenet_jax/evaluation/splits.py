"""Evaluation of a model on its own split, and on other data sets of the same classes."""

import dataclasses
import math
import re
from typing import Any

from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.evaluation import scores, test_time_augmentation
from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training import batches, settings
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.experiment import Experiment

# Data set -> {other data set of the same classes: its split}.  The others are evaluated, too, if
# they have been prepared: ReaL's labels (Beyer et al., 2020), ImageNet-V2's images (Recht et al.,
# 2019).
RELATED = {
    "imagenet2012": {"imagenet2012_real": "validation", "imagenet_v2/matched-frequency": "test"}
}


def related(name: str) -> dict[str, str]:
    """Returns {data set of the same classes: its split} for a data set, such as "imagenet2012"."""
    # Decoded images ("imagenet2012_raw256") are those of the data set itself.
    return RELATED.get(re.sub(r"_raw\d+$", "", name.partition(":")[0]), {})


@dataclasses.dataclass(frozen=True)
class Assessed:
    """A model's predictions for a split, and their scores.

    Attributes:
      record: {"data", "split", "crops", "flip"} and `Task.summary`; also
        `Classification.accepted`, where examples have several right labels.
      scores: of every example, see `scores.collect`.
      source: the split.
    """

    record: dict[str, Any]
    scores: scores.Scores
    source: Source


def assess(
    setup: Experiment,
    variables: Any,
    *,
    crops: int = 1,
    flip: bool = False,
    outputs: Outputs | None = None,
) -> list[Assessed]:
    """Evaluates a model on its evaluation split and on prepared data sets of the same classes.

    Args:
      setup: as `training.experiment.build` returns it; its mesh must be the current one.
      variables: the model's variables, {"params", "batch_stats"}, on that mesh.
      crops: number of views of each image, 1 or 5 (see `test_time_augmentation.cut`).
      flip: whether the mirror images of the views are evaluated, too.
      outputs: what the model's outputs mean, with calibration and thresholds; None: without them.

    Returns:
      one for each data set, the configuration's own first.

    Raises:
      ConfigError: five crops were requested, but the images have no margin to crop.
    """
    data = setup.config.data
    splits = {(data.name, data.eval_split): setup.eval_source}
    for other, split in related(data.name).items():
        source = _find(other, split, data.data_dir)
        if source is not None and source.num_classes == setup.model.num_classes:
            splits[other, split] = source
    results = []
    for (name, split), source in splits.items():
        found = answers(setup, variables, source, crops=crops, flip=flip)
        record = {"data": name, "split": split, "crops": crops, "flip": flip}
        groups = source.groups_of(found["index"])
        if groups is not None:
            record["groups"] = len(set(groups))
        record |= setup.task.summary(found, source.class_names, outputs, groups)
        if source.accepted is not None and isinstance(setup.task, Classification):
            sets = source.accepted()
            record |= setup.task.accepted(found, [sets[i] for i in found["index"]])
        results.append(Assessed(record, found, source))
    return results


def answers(
    setup: Experiment, variables: Any, source: Source, *, crops: int = 1, flip: bool = False
) -> scores.Scores:
    """Returns a model's scores of every example of a split, see `scores.collect`.

    Args:
      setup: as `training.experiment.build` returns it; its mesh must be the current one.
      variables: the model's variables, {"params", "batch_stats"}, on that mesh.
      source: the split.
      crops: number of views of each image, 1 or 5.
      flip: whether the mirror images of the views are evaluated, too.

    Raises:
      ConfigError: five crops were requested, but the images have no margin to crop.
    """
    split = batches.eval_batches(with_margin(setup) if crops > 1 else setup, source)
    return scores.collect(scorer(setup, crops=crops, flip=flip), variables, split)


def scorer(setup: Experiment, *, crops: int = 1, flip: bool = False) -> scores.Score:
    """Returns `scores.scorer` of an experiment; crops and flip are as of `answers`."""
    size, loss = setup.config.data.image_size, settings.make_loss(setup.config)
    predict = test_time_augmentation.predictor(
        setup.model, setup.normalize, size, task=setup.task, crops=crops, flip=flip
    )
    return scores.scorer(setup.task, loss, predict)


def with_margin(setup: Experiment) -> Experiment:
    """Returns an experiment whose evaluation images keep the margin that the central crop removes.

    Raises:
      ConfigError: the central crop leaves no margin.
    """
    config = setup.config.copy_and_resolve_references()
    # Rounded down as in `data.reading.host.center_crop`, so that images are resized exactly as for
    # a single crop.
    size = math.floor(config.data.image_size / config.data.eval_crop)
    if size <= config.data.image_size:
        raise ConfigError(
            f"--crops=5 needs images with a margin, but config.data.eval_crop is "
            f"{config.data.eval_crop:g}: add --config.data.eval_crop=0.875, for example."
        )
    config.data.image_size, config.data.eval_crop = size, 1.0
    return dataclasses.replace(setup, config=config)


def _find(name: str, split: str, data_dir: str) -> Source | None:
    """Returns a split; None if its data set has not been prepared."""
    try:
        return by_name.load(name, split, data_dir)
    except DataError:
        return None
