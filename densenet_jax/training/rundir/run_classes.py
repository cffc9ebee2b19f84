"""The names of a run's classes, labels or numbers in label order: classes.json."""

import itertools
import os
import pathlib
from collections.abc import Sequence

from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.rundir import bounded_files

FILE = "classes.json"


def class_names(workdir: str | os.PathLike[str]) -> list[str] | None:
    """Returns the names of a run's classes in label order; None if it did not store them.

    Raises:
      CheckpointError: the file cannot be read, or is not a list of names.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        names = bounded_files.read_json(path)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}.") from None
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{path} is damaged: it must be a list of the names of the classes in label order. "
            "Repair it, or remove it to use numbers as names."
        )
    return names


def difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Returns the first label whose name differs, "label 3 was 'a' and is 'b'"; "": none does."""
    for label, pair in enumerate(itertools.zip_longest(before, now)):
        if pair[0] != pair[1]:
            was, is_now = ("missing" if name is None else repr(name) for name in pair)
            return f"label {label} was {was} and is {is_now}"
    return ""


def check(class_names_now: Sequence[str], workdir: pathlib.Path) -> None:
    """Compares the classes of the data with those that a run was trained with.

    Args:
      class_names_now: of the data, in label order.
      workdir: the run's directory; one without classes.json has nothing to compare with.

    Raises:
      ConfigError: they differ; the message has the first that does.
      CheckpointError: see `class_names`.
    """
    trained = class_names(workdir)
    if trained is None or not (apart := difference(trained, class_names_now)):
        return
    raise ConfigError(
        f"{workdir} was trained with other classes than the data have now: {apart} "
        f"(of {len(trained)} and {len(class_names_now)} classes). Give the classes "
        f"their names of {workdir / FILE} again, or start another run from this one: "
        f"--workdir=NEW --config.init_from={workdir}."
    )
