"""Out-of-distribution detection: how well a model tells other images from those of its split."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.sources import by_name, files
from densenet_jax.data.sources.source import DataError, Source
from densenet_jax.evaluation import features, splits
from densenet_jax.scores import ood
from densenet_jax.training import batches, settings
from densenet_jax.training.eval_loop import gather
from densenet_jax.training.experiment import Experiment

TRAINING_EXAMPLES = 10_000  # largest number whose features give means and covariance


def open_images(text: str) -> Source:
    """Returns the images that --outside names: a folder of images, or NAME[:SPLIT] of a data set.

    Raises:
      DataError: there are none.
    """
    if os.path.isdir(text):
        found = [
            os.path.join(parent, name)
            for parent, names in files.walk(text, files.refuse)
            for name in sorted(names)
            if name.lower().endswith(files.IMAGE_SUFFIXES) and name[0] != "."
        ]
        if not found:
            raise DataError(f"--outside={text}: the folder has no images.")
        return Source(files.Files("", sorted(found), np.zeros(len(found), np.int32)), ("",), text)
    name, _, split = text.partition(":")
    return by_name.load(name, split or "test")


def assess(setup: Experiment, variables: Any, own: splits.Assessed, text: str) -> dict[str, Any]:
    """Returns how well out-of-distribution scores separate other images from those of the split.

    Args:
      setup: as `training.experiment.build` returns it; its mesh must be the current one.
      variables: the model's variables, {"params", "batch_stats"}, on that mesh.
      own: the evaluation of the split.
      text: the other images, see `open_images`.

    Returns:
      {"data", "examples", "energy": AUROC (Liu et al., 2020), "mahalanobis": AUROC of the distance
      of pooled features to the closest class (Lee et al., 2018), of classification only}; 0.5 is
      chance, 1 perfect.
    """
    others, multilabel = open_images(text), setup.task.name == "multilabel"
    if setup.task.name == "regression":
        raise DataError("--outside is for classes and labels; there is no such score for numbers.")
    models = {"logits": setup.model}
    if not multilabel:
        models["features"] = setup.model.clone(num_classes=0)  # pools as the model does

    @jax.jit
    def answer(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = setup.normalize(batch["image"])
        found: Any = {key: model.apply(variables, images) for key, model in models.items()}
        return {**jax.tree.map(jnp.float32, found), "mask": batch["mask"]}

    with batches.eval_batches(setup, others) as stream:  # reads every image once
        strange = gather([answer(variables, batch) for batch in stream])
    count = len(strange["logits"])
    if not count:
        raise DataError(f"--outside={text}: no image could be read as this model takes them.")
    energies = [ood.energy(x, multilabel) for x in (own.scores["logits"], strange["logits"])]
    record = {"data": text, "examples": count, "energy": ood.separation(*energies)}
    if not multilabel:
        train = features.spread(settings.train_source(setup.config), TRAINING_EXAMPLES)
        known = features.of_split(setup, variables, train)
        distance = ood.mahalanobis(known["features"], known["label"])
        inside = features.of_split(setup, variables, own.source)["features"]
        record["mahalanobis"] = ood.separation(distance(inside), distance(strange["features"]))
    return record
