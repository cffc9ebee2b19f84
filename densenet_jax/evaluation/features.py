"""Pooled features of every example of a split, and the accuracy of simple models on them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.sources import subsets
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import DataError, Source
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


def of_files(found: Iterable[tuple[str, str | None]]) -> Source:
    """Returns image files as a split without labels.

    Args:
      found: (path, None) of each file, or (path, why there is none), as `predict.find` yields them.

    Raises:
      DataError: something that was named is no image.
    """
    paths = []
    for path, error in found:
        if error is not None:
            raise DataError(f"{path}: {error}.")
        paths.append(path)
    return Source(Files("", paths, np.zeros(len(paths), np.int32)), ("",), "the files")


def write(path: str, found: dict[str, dict[str, np.ndarray]], class_names: Sequence[str]) -> None:
    """Writes features to a file.

    Args:
      path: ends in .npz: the arrays are called SPLIT_index, SPLIT_id, SPLIT_features and
        SPLIT_label, and `class_names`. Ends in .parquet: a row for each example, with the columns
        split, index, id, label and feature_0, feature_1, ...
      found: {split: as `of_split` returns it, with "id"}.
      class_names: in label order.

    Raises:
      ConfigError: .parquet needs the package pyarrow.
    """
    if path.endswith(".npz"):
        arrays = {f"{split}_{key}": v for split, own in found.items() for key, v in own.items()}
        np.savez_compressed(
            path, allow_pickle=False, class_names=np.array(class_names, str), **arrays
        )
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            f"{path} needs the package pyarrow: pip install pyarrow, or write a .npz file."
        ) from None
    tables = []
    for split, own in found.items():
        columns = {"split": [split] * len(own["index"]), "index": own["index"], "id": own["id"]}
        columns["label"] = own["label"] if own["label"].ndim == 1 else own["label"].tolist()
        columns |= {f"feature_{i}": column for i, column in enumerate(own["features"].T)}
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path)


def quick_look(
    setup: Experiment, train: dict[str, np.ndarray], evaluated: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Returns the metrics of two simple models on the features, as a check before fine-tuning.

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
