"""Labels in the features of prepared data sets (TFDS, Hugging Face), for each task.

Both libraries describe features in their own classes; `Feature` holds the parts that are used here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.table_labels import UNCERTAIN

# States that a label of several can have, as in TFDS's chexpert; None: see data.uncertain.
STATES = {"unmentioned": None, "uncertain": None, "negative": 0.0, "positive": 1.0}
# The order of CheXpert's labels, which TFDS does not store (Irvin et al., 2019).
CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)


class Feature(NamedTuple):
    """A feature that may hold labels.

    Attributes:
      key: its name in a record.
      names: of its classes, "false" and "true" for truth values; None: its values are numbers.
      size: values in a record; None: it varies, or is not known.
      several: whether it is a sequence.
    """

    key: str
    names: tuple[str, ...] | None
    size: int | None
    several: bool

    @property
    def task(self) -> str:
        """The task that the feature suits by itself."""
        if self.names is None:
            return "regression"
        return "multilabel" if self.several else "classification"


@dataclasses.dataclass(frozen=True)
class Part:
    """Converts the values of a feature to labels.

    Attributes:
      feature: the feature.
      names: of its L labels.
      meaning: the label that each value stands for; None: the values are the numbers to predict.
      listed: whether the values are the numbers of the labels that are present.
    """

    feature: Feature
    names: tuple[str, ...]
    meaning: dict[float, float] | None
    listed: bool = False

    def __call__(self, values: Sequence[float]) -> np.ndarray:
        """Returns the labels of an example, float32 [L].

        Raises:
          DataError: there are too many or too few values, or one that is no label.
        """
        if self.listed:
            labels = np.zeros(len(self.names), np.float32)
            labels[list(map(int, values))] = 1
            return labels
        try:
            if len(values) != len(self.names):
                raise ValueError
            if self.meaning is None:
                found = list(values)
            else:  # NaN: a missing value
                found = [self.meaning[-1.0 if v != v else float(v)] for v in values]
        except (KeyError, ValueError):
            allowed = "" if self.meaning is None else f" among {sorted(self.meaning)}"
            raise DataError(
                f"An example has {list(values)[:20]} in {self.feature.key!r}, which must be "
                f"{len(self.names)} values{allowed}. Correct the data set, or choose another "
                "label with data.label_columns."
            ) from None
        return np.asarray(found, np.float32)


def parts(
    features: Sequence[Feature],
    task: str,
    uncertain: str,
    name: str,
    first: Callable[[str], Sequence[float]],
) -> list[Part]:
    """Returns what converts the features of a record to the labels of a task.

    Args:
      features: that hold labels.
      task: "multilabel" or "regression".
      uncertain: what labels that are uncertain or not mentioned mean, see `table_labels`.
      name: of the data set, for messages.
      first: returns the values of a feature in the first record.

    Raises:
      DataError: a feature does not suit the task.
    """
    if uncertain not in UNCERTAIN:
        raise DataError(
            f"data.uncertain is {uncertain!r}; it must be one of {', '.join(UNCERTAIN)}."
        )
    return [_part(feature, task, UNCERTAIN[uncertain], name, first) for feature in features]


def _part(
    feature: Feature,
    task: str,
    uncertain: float,
    name: str,
    first: Callable[[str], Sequence[float]],
) -> Part:
    names = feature.names
    states = names is not None and {n.lower() for n in names} <= STATES.keys()
    if task == "multilabel" and names is not None and feature.several and not states:
        return Part(feature, names, None, listed=True)
    meaning: dict[float, float] | None = None
    if task == "multilabel":
        if names is None:
            meaning = {0.0: 0.0, 1.0: 1.0}
        elif states:
            known = [STATES[n.lower()] for n in names]
            meaning = {float(i): uncertain if v is None else v for i, v in enumerate(known)}
        elif len(names) == 2:
            meaning = {0.0: 0.0, 1.0: 1.0}
    if meaning is not None:
        meaning[-1.0] = uncertain  # also for missing values
    if (task == "multilabel") != (meaning is not None) or (task == "regression" and names):
        raise unsuitable(feature, task, name)
    count = feature.size if feature.size is not None else len(first(feature.key))
    if states and count == len(CHEXPERT) and name.startswith("chexpert"):
        return Part(feature, CHEXPERT, meaning)
    own = [feature.key] if count == 1 else [f"{feature.key} {i}" for i in range(count)]
    return Part(feature, tuple(own), meaning)


def unsuitable(feature: Feature, task: str, name: str) -> DataError:
    """Returns the error of a feature that does not suit the task of the configuration."""
    what = {
        "regression": "holds numbers, not one class for each image",
        "multilabel": "holds several classes, not one class for each image",
        "classification": f"is one of {len(feature.names or ())} classes",
    }[feature.task]
    return DataError(
        f"The feature {feature.key!r} of {name} {what}: its task is {feature.task}, and "
        f"config.task is {task}. Set --config.task={feature.task}, choose another feature with "
        "data.label_columns, or another data set."
    )
