"""The command `verify`: compares another implementation of a network with this one."""

import pathlib
from typing import Any, cast

import ml_collections
import numpy as np
from flax import linen as nn
from rich.table import Table

from densenet_jax import atomic_files
from densenet_jax.cli.weights import DIFFERENT, variant
from densenet_jax.models.variants import create_model
from densenet_jax.terminal import Console, say
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import (
    conformance,
    from_state_dict,
    read,
    to_state_dict,
    write_safetensors,
)

FORMULA = "formula:"
SIZE = 68  # stem 34, block 17: so that rounding and padding show
CLASSES = 10


def verify(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    model: str | None,
    prefix: str | None,
    output: str | None,
) -> int:
    """Compares stages and logits of a network with stored ones, or stores them.

    Args:
      config: not used.
      words: a source of weights (see `weights.load`), or "formula:" and the name of a variant; and
        the file of another implementation's answers, if there is one.
      model: the variant that the weights belong to; None: they say it.
      prefix: the module of the file that holds the network; None: the only one.
      output: a file to write: .npz, the answers; .safetensors, the weights; None: none.

    Returns:
      1 if the answers differ, else 0.

    Raises:
      ConfigError: words or output are wrong.
      WeightsError: weights or answers cannot be read.
    """
    if not 1 <= len(words) <= 2 or bool(output) == (len(words) == 2):
        raise ConfigError(
            "verify takes weights and a file of answers to compare (verify FILE ANSWERS.npz), or "
            "writes one (verify FILE --output=GOLDEN.npz)."
        )
    network, variables = _network(words[0], model, prefix)
    images = conformance.images(SIZE, cast(Any, network).in_channels)
    if output:
        _write(pathlib.Path(output), network, variables, images)
        return 0
    verdict = conformance.verify(network, variables, images, read(words[1]))
    table = Table("stage", "difference", box=None)
    for stage, difference in verdict.differences.items():
        table.add_row(stage, f"{difference:.2g}" if difference < np.inf else "another shape")
    Console().print(table)
    if not verdict.first:
        say(f"{words[1]} agrees with {words[0]} in {len(verdict.differences)} stages.")
        return 0
    say(f"The first stage that differs is {verdict.first}.")
    for fault in verdict.faults:
        say(f"These numbers come out if {fault}.")
    if not verdict.faults:
        say("None of the usual faults gives these numbers; compare the weights, then this stage.")
    return DIFFERENT


def _network(source: str, model: str | None, prefix: str | None) -> tuple[nn.Module, Any]:
    """Returns the network and variables of a source of weights."""
    if not source.startswith(FORMULA):
        found = run_weights.load(source, variant(model, source), prefix=prefix)
        return found.model, found.variables
    name = variant(source.removeprefix(FORMULA), source)
    network: Any = create_model(cast(str, name), num_classes=CLASSES)
    return network, from_state_dict(network, conformance.state_dict(network))


def _write(path: pathlib.Path, network: nn.Module, variables: Any, images: np.ndarray) -> None:
    """Writes answers (.npz) or weights (.safetensors)."""
    if not path.parent.is_dir():
        raise ConfigError(f"--output={path}: there is no folder {path.parent}.")
    if path.suffix == ".safetensors":
        write_safetensors(path, to_state_dict(network, variables))
    elif path.suffix == ".npz":
        found: dict[str, Any] = conformance.summary(conformance.stages(network, variables, images))
        with atomic_files.replacing(path) as file:
            np.savez(file, images=images, **found)
    else:
        raise ConfigError(f"--output={path} must end in .npz (answers) or .safetensors (weights).")
    say(f"written: {path}")
