"""Pooled features of every example of a split, and what can be read from them at once."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.sources import subsets
from densenet_jax.data.sources.source import Source
from densenet_jax.training import batches
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.eval_loop import gather
from densenet_jax.training.experiment import Experiment

NEIGHBOURS = 10


def of_split(
    setup: Experiment, variables: Any, source: Source, block: str = "final"
) -> dict[str, np.ndarray]:
    """Returns the feature maps of a block, averaged over positions, of every example of a split.

    Args:
      setup: as `training.experiment.build` returns it; its mesh must be the current one.
      variables: the model's variables, {"params", "batch_stats"}, on that mesh.
      source: the split.
      block: "block1", ..., or "final": what the classifier sees.

    Returns:
      {"index": numbers of the examples that could be read, int [N]; "features": float32 [N, D];
      "label": [N] or [N, L]}.

    Raises:
      ConfigError: the model has no such block.
    """
    model = setup.model
    shape = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32)
    known = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, shape)
    if block not in known:
        raise ConfigError(f"--block={block} must be one of {', '.join(known)}.")
    head = model.clone(num_classes=0)  # pools as the model does

    @jax.jit
    def compute(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = setup.normalize(batch["image"])
        if block == "final":
            pooled = head.apply(variables, images)
        else:
            maps = cast(Any, model.apply(variables, images, method="features"))[block]
            pooled = maps.mean(axis=(1, 2), dtype=jnp.float32)
        features = cast(jax.Array, pooled).astype(jnp.float32)
        return {"features": features, "label": batch["label"], "mask": batch["mask"]}

    with batches.eval_batches(setup, source) as split:
        return gather([compute(variables, batch) for batch in split])


def quick_look(
    setup: Experiment, train: dict[str, np.ndarray], evaluated: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Returns how well two simple models on the features do, before any fine-tuning.

    Args:
      setup: the experiment, for its task.
      train: features and labels that the models learn from, as of `of_split`.
      evaluated: those that they are measured on.

    Returns:
      {"nearest neighbours", "linear probe": {key of a metric of the task: value}}. The probe is a
      logistic or ridge regression on standardised features, without any search for its strength.
    """
    task, found = setup.task.name, {}
    for title, model in _models(task).items():
        x, y = train["features"], train["label"]
        if task == "classification":
            p = _classes(model, x, y, evaluated["features"], setup.model.num_classes)
            hits = setup.task.measure(jnp.asarray(p), jnp.asarray(evaluated["label"]))
            found[title] = {key: float(np.mean(value)) for key, value in hits.items()}
            continue
        columns = []
        for own in y.T:
            known = ~np.isnan(own)
            columns.append(_column(task, model, x[known], own[known], evaluated["features"]))
        key = "values" if task == "regression" else "probabilities"
        answers = {key: np.stack(columns, axis=1), "label": evaluated["label"]}
        found[title] = setup.task.of_split({**answers, "labels": evaluated["label"]})
    return found


def _models(task: str) -> dict[str, Callable[[int], Any]]:
    """Returns {title: function from the number of examples to an untrained scikit-learn model}."""
    from sklearn import linear_model, neighbors, pipeline, preprocessing

    regression = task == "regression"
    near = neighbors.KNeighborsRegressor if regression else neighbors.KNeighborsClassifier
    line = linear_model.Ridge() if regression else linear_model.LogisticRegression(max_iter=1000)
    return {
        "nearest neighbours": lambda count: near(min(NEIGHBOURS, count)),
        "linear probe": lambda count: pipeline.make_pipeline(preprocessing.StandardScaler(), line),
    }


def _classes(
    model: Callable[[int], Any], x: np.ndarray, y: np.ndarray, new: np.ndarray, classes: int
) -> np.ndarray:
    """Returns probabilities, float32 [N, classes]; 0 for classes without training examples."""
    fitted = model(len(x)).fit(x, y)
    p = np.zeros((len(new), classes), np.float32)
    p[:, fitted.classes_] = fitted.predict_proba(new)
    return p


def _column(
    task: str, model: Callable[[int], Any], x: np.ndarray, y: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """Returns the probabilities of one label or the values of one number, [N]."""
    if len(y) == 0 or (task == "multilabel" and len(np.unique(y)) < 2):
        return np.zeros(len(new), np.float32)  # a constant has an AUROC of one half
    fitted = model(len(x)).fit(x, y)
    return fitted.predict(new) if task == "regression" else fitted.predict_proba(new)[:, 1]


def spread(source: Source, count: int) -> Source:
    """Returns at most `count` examples of a split, evenly spaced; a folder is sorted by class."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
    return source if len(rows) == len(source) else subsets.take(source, rows)
