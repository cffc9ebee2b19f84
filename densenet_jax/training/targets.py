"""Values of a configuration that come from the labels of the training split."""

import ml_collections
import numpy as np

from densenet_jax.data.sources import subsets
from densenet_jax.data.sources.source import Source
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.settings import train_source


def settle(config: ml_collections.ConfigDict, source: Source) -> None:
    """Sets class weights that are `auto`, and the mean and standard deviation of regression.

    The numbers are stored in config.json, so that a repeated run uses the same ones.

    Args:
      config: the configuration, which is changed.
      source: the evaluation split, for the number and names of the classes.

    Raises:
      ConfigError: the number of weights differs from that of the classes, or a value cannot be
        computed from the labels.
    """
    data, weights = config.data, config.class_weights
    if weights == "auto":
        train = train_source(config)
        with config.ignore_type():  # from text to numbers
            config.class_weights = automatic_weights(train, subsets.labels(train))
    elif weights and (not isinstance(weights, tuple | list) or len(weights) != source.num_classes):
        raise ConfigError(
            f"config.class_weights is {weights}; it must be a number for each of the "
            f"{source.num_classes} outputs of {data.name}: {_some(source.class_names)}."
        )
    if config.task != "regression":
        return
    if data.target_mean is None or data.target_std is None:
        train = train_source(config)
        mean, std = moments(train, subsets.labels(train))
        data.target_mean = mean if data.target_mean is None else data.target_mean
        data.target_std = std if data.target_std is None else data.target_std
    for key in ("target_mean", "target_std"):
        if len(data[key]) != source.num_classes:
            raise ConfigError(
                f"config.data.{key} has {len(data[key])} values, but {data.name} has "
                f"{source.num_classes} numbers: {_some(source.class_names)}."
            )


def automatic_weights(source: Source, labels: np.ndarray) -> tuple[float, ...]:
    """Returns weights of the classes for which each has the same share of the loss.

    Args:
      source: the training split.
      labels: its labels, [N] or [N, L] with NaN where one is unknown.

    Returns:
      of classification N / (classes * examples of the class), whose mean over the examples is 1;
      of several labels, the number of absent for each present one.

    Raises:
      ConfigError: a class has no examples, or a label has not both kinds.
    """
    if source.task == "classification":
        counts = np.bincount(labels, minlength=source.num_classes)
        weights = len(labels) / (len(counts) * np.maximum(counts, 1))
        lacking, what = counts == 0, "lacks examples of"
    else:
        present, absent = (labels == 1).sum(0), (labels == 0).sum(0)
        weights = absent / np.maximum(present, 1)
        lacking, what = (present == 0) | (absent == 0), "lacks either present or absent examples of"
    if lacking.any():
        names = _some([n for n, lacks in zip(source.class_names, lacking, strict=True) if lacks])
        raise ConfigError(
            f"config.class_weights is 'auto', but {source.name} {what} {names}; give the weights "
            "as numbers, or leave these out with config.data.classes."
        )
    return tuple(float(f"{weight:.6g}") for weight in weights)


def moments(source: Source, labels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each number in a split, where it is known.

    Args:
      source: the training split.
      labels: its labels, [N, L] with NaN where one is unknown.

    Raises:
      ConfigError: a number is known of no example, or is the same for all.
    """
    for i, name in enumerate(source.class_names):
        known = labels[~np.isnan(labels[:, i]), i]
        if not len(known) or known.min() == known.max():
            state = f"is {known[0]:g} for all examples" if len(known) else "is always unknown"
            raise ConfigError(
                f"{name} {state} of {source.name}, so there is nothing to learn; leave it out."
            )
    values = labels.astype(np.float64)
    return tuple(np.nanmean(values, 0).tolist()), tuple(np.nanstd(values, 0).tolist())


def _some(names: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)
