"""The command `weights`: describes a file of weights, converts it, or compares two."""

import pathlib

import ml_collections
from flax import traverse_util
from rich.table import Table

from densenet_jax.models.variants import list_models, nearest
from densenet_jax.terminal import Console, say
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import Pretrained, to_state_dict, write_safetensors
from densenet_jax.weights.describe import Description, describe, differences

TOLD_BY_NAMES = ("deep_blur", "cifar")  # stems that are inferred from the tensors
DIFFERENT = 1  # exit code of a comparison, as of diff


def variant(model: str | None, source: str | None) -> str | None:
    """Returns the value of --model.

    Args:
      model: the value; None: the flag is absent.
      source: the value of --weights, which --model describes.

    Raises:
      ConfigError: there is no such variant, or there are no weights that it describes.
    """
    if model and not source:
        raise ConfigError(
            f"--model={model} describes the file in --weights=FILE, which is missing; a run knows "
            "its own network."
        )
    if model and model not in list_models():
        raise ConfigError(f"There is no model {model!r}. {nearest(model, list_models())}")
    return model


def weights(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    model: str | None,
    prefix: str | None,
    output: str | None,
) -> int:
    """Describes, converts or compares weights; returns 1 if two differ, else 0.

    Args:
      config: not used.
      words: one or two sources of weights, see `weights.load`.
      model: the variant that they belong to; None: they say it.
      prefix: the module that holds the network; None: the only one.
      output: the safetensors file to write the first one to, under PyTorch's names; None: none.

    Raises:
      ConfigError: there is no source, or there are too many.
      WeightsError: a source cannot be read, or not be converted or compared.
    """
    if not 1 <= len(words) <= 2 or (output and len(words) > 1):
        raise ConfigError(
            "weights takes one file to describe (--output=FILE.safetensors converts it), or two to "
            "compare."
        )
    model = variant(model, words[0])
    if len(words) == 2:
        first, second = (run_weights.load(word, model, prefix=prefix) for word in words)
        return _compare(words[0], words[1], first, second)
    if output:
        _convert(words[0], run_weights.load(words[0], model, prefix=prefix), output)
        return 0
    _show(describe(words[0], model, prefix=prefix, read_run=run_weights.read_run))
    return 0


def _show(found: Description) -> None:
    """Prints a description as a table, with what is wrong below it."""
    table = Table(box=None, show_header=False)
    for key, text in found.lines.items():
        table.add_row(key, text)
    Console().print(table)
    for problem in found.problems:
        say(f"note: {problem}")


def _convert(source: str, found: Pretrained, output: str) -> None:
    """Writes weights under PyTorch's names."""
    path = pathlib.Path(output)
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"--output={output} must end in .safetensors, the format that is written."
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--output={output}: there is no folder {path.parent}.")
    write_safetensors(path, to_state_dict(found.model, found.variables), {"origin": source})
    say(f"{source}: {found.report}")
    usual = type(found.model).__dataclass_fields__
    for field in ("norm_epsilon", "stem"):
        value = getattr(found.model, field, None)
        if field in usual and value not in (usual[field].default, *TOLD_BY_NAMES):
            say(f"note: the file cannot say {field}={value!r}; load it with this argument.")
    say(f"written: {path}")


def _compare(one: str, other: str, first: Pretrained, second: Pretrained) -> int:
    """Prints how the variables of two networks differ."""
    flat = [traverse_util.flatten_dict(found.variables, sep="/") for found in (first, second)]
    apart, unequal, greatest = differences(*flat)
    if not apart and not unequal:
        say(f"{one} and {other} are equal: {len(flat[0])} variables.")
        return 0
    if apart:
        say(f"{len(apart)} variables are in one alone or have other shapes: {_some(apart)}")
    if unequal:
        say(
            f"{len(unequal)} of {len(flat[0])} variables differ, by up to {greatest:.3g}: "
            f"{_some(unequal)}"
        )
    return DIFFERENT


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
