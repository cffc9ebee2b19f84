"""The commands before the first run: init and completion."""

import pathlib
import re

import ml_collections

from densenet_jax import atomic_files
from densenet_jax.cli import completion as shells
from densenet_jax.cli import found_data, new_config
from densenet_jax.cli.invocation import program
from densenet_jax.terminal import say
from densenet_jax.training.errors import ConfigError


def init(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    weights: str | None,
    output: str | None,
) -> None:
    """Writes a configuration for a folder of images or a table.

    Args:
      config: not used.
      words: path of the folder or table, one word.
      weights: the weights to start from; None: suggested ones.
      output: the file to write; None: named after the data, in the working directory.

    Raises:
      ConfigError: there is not one path, or the file exists already.
      DataError: the data cannot be used; see `found_data.look`.
    """
    if len(words) != 1:
        raise ConfigError("init takes one folder of images or one table: init my/images.")
    named = re.sub(r"[^0-9A-Za-z_]+", "_", pathlib.Path(words[0]).absolute().stem).strip("_")
    path = pathlib.Path(output or f"{named or 'data'}.py")
    if path.exists():
        raise ConfigError(f"{path} exists already; choose another file with --output=FILE.py.")
    found = found_data.look(words[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write(path, new_config.source_code(found, weights or ""))
    for note in dict.fromkeys((*found.train.notes, *found.validation.notes)):
        say(note)
    say(
        f"written: {path} ({len(found.train):,} images to train on, {len(found.validation):,} to "
        f"evaluate on, {found.train.num_classes} {_KINDS[found.train.task]}); read it, then run",
        f"  {program()} --config={path} --workdir=runs/{path.stem}",
    )


_KINDS = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}


def completion(config: ml_collections.ConfigDict | None, words: list[str]) -> None:
    """Prints a script for a shell.

    Args:
      config: not used.
      words: the shell, one word.

    Raises:
      ConfigError: it is not one of `completion.SHELLS`.
    """
    if len(words) != 1 or words[0] not in shells.SHELLS:
        raise ConfigError(f"completion takes one of {', '.join(shells.SHELLS)}.")
    say(*shells.script(words[0]).splitlines())
