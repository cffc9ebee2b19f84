"""The class of an option, and the conversion of a table of options to a configuration."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

ABOVE_0 = 1e-12  # the lower end of ranges that exclude 0


class Option(NamedTuple):
    """One key of the configuration.

    Attributes:
      key: with dots, "optimizer.learning_rate".
      default: None leaves the value to the variant, the weights or the data; `kind` is its type.
      about: what it does, for people.
      range: smallest and largest number, of each number if the value is a tuple; None: no number,
        or any.
      kind: the type of values, where it is not that of the default; `object`: several types.
      whole: whether a value of several types or a tuple must consist of whole numbers.
    """

    key: str
    default: Any
    about: str
    range: tuple[float, float] | None = None
    kind: type | None = None
    whole: bool = False


def to_config(options: Iterable[Option]) -> ConfigDict:
    """Returns a configuration in which every option has its default."""
    config = ConfigDict()
    for option in options:
        *parents, name = option.key.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ConfigDict()
            node = node[parent]
        if option.kind is None:
            node[name] = option.default
        else:
            node[name] = FieldReference(option.default, field_type=option.kind)
    return config
