"""Finds weights by name, hub repository, file or folder, and makes them a model's variables."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import linen as nn

from densenet_jax.models.variants import VARIANTS, create_model, list_models, nearest
from densenet_jax.weights import adapt, hub, names
from densenet_jax.weights.files import read
from densenet_jax.weights.published import IMAGENET, PUBLISHED, Preprocessing, model_of, of_model
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import read_config

CHECKPOINTS = "checkpoints"  # a folder that has it is the directory of a run

logger = logging.getLogger(__name__)

# Maps the directory of a run to its model, the variables of its best checkpoint, and preprocessing.
ReadRun = Callable[[str], tuple[nn.Module, Any, Preprocessing]]


@dataclass(frozen=True)
class Found:
    """Weights before they meet a model.

    Attributes:
      origin: where they are, for messages.
      state_dict: as the file names them.
      model: the variant or the very model they were trained with; None: unknown.
      fields: of the variant, where they differ from it.
    """

    origin: str
    state_dict: dict[str, np.ndarray]
    model: str | nn.Module | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = IMAGENET
    licence: str | None = None


@dataclass(frozen=True)
class Pretrained:
    """A model with weights, and what a user of it has to know."""

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    licence: str | None
    report: adapt.Report


def load(
    source: str | os.PathLike[str],
    model: str | nn.Module | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    seed: int = 0,
    read_run: ReadRun | None = None,
    **overrides: Any,
) -> Pretrained:
    """Loads published weights, a weight file or a checkpoint.

    Args:
      source: a name such as `densenet121.ra_in1k` (a bare variant: its first published weights), a
        hub repository `hf-hub:owner/name` or `hf-hub:owner/name@revision`, a weight file, a folder
        with one (and timm's `config.json`, where it has it), or the directory of a run.
      model: the variant or the model that the weights belong to, where the source does not say.
      num_classes: None: as in the weights.  0: pooled features.  Another number than there: a
        classifier initialised from `seed`.
      in_channels: None: as in the weights (of a model: as there); see `adapt.adapt_channels`.
      revision: branch, tag or commit on the hub.
      sha256: what the weight file must have, in hexadecimal digits.
      seed: of fresh values.
      read_run: reads the directory of a run, which belongs to training and not to this package;
        `training.rundir.run_weights.load` has it.  None: such directories are refused.
      **overrides: fields of the module, see `create_model`.

    Raises:
      WeightsError: nothing is found, or it does not fit; what to do about it.
      ValueError: an unknown model or field.
    """
    found = find(os.fspath(source), revision, sha256, read_run)
    base = _base(found, model, overrides)
    matching = names.match(base, found.state_dict)
    classes, channels = adapt.sizes(matching)
    fields = {"num_classes": num_classes, "in_channels": in_channels}
    if not isinstance(model, nn.Module):
        given = {"num_classes": classes, "in_channels": channels} | overrides
        fields = {k: given.get(k) if v is None else v for k, v in fields.items()}
        if "norm_epsilon" not in overrides:
            fields["norm_epsilon"] = matching.convention.norm_epsilon
    base = base.clone(**{k: v for k, v in fields.items() if v is not None})
    variables, report = adapt.merge(base, found.state_dict, seed)
    logger.info("%s: %s.", found.origin, report)
    return Pretrained(base, variables, found.preprocessing, found.licence, report)


def find(
    source: str,
    revision: str | None = None,
    sha256: str | None = None,
    read_run: ReadRun | None = None,
) -> Found:
    """Returns the weights that a source stands for; see `load`."""
    if source.startswith(hub.HUB_PREFIXES):
        repository, _, pinned = source.partition(":")[2].partition("@")
        return _hub(repository, source, pinned or revision, sha256)
    name = next(iter(of_model(source)), source)
    if name in PUBLISHED:
        return _published(name, revision, sha256)
    if os.path.isdir(source):
        return _run(source, read_run) if is_run(source) else _folder(source, sha256)
    if os.path.exists(source):
        return _file(source, sha256)
    if name in VARIANTS:
        raise WeightsError(
            f"No weights of {name} are published; these have some: "
            f"{', '.join(dict.fromkeys(map(model_of, PUBLISHED)))}."
        )
    if os.sep in source or os.path.splitext(source)[1] in (".pth", ".safetensors", ".h5", ".npz"):
        raise WeightsError(f"{source}: there is no such file; check the path.")
    raise WeightsError(f"There are no weights {source!r}. {nearest(source, list(PUBLISHED))}")


def _published(name: str, revision: str | None, sha256: str | None) -> Found:
    row, folder = PUBLISHED[name], hub.placed_folder(name, revision)
    if not os.path.isdir(folder):
        folder = hub.download(row.repository, name, revision, config=False)
    state_dict = _read(_weights_in(folder), sha256)
    return Found(name, state_dict, model_of(name), {}, row.preprocessing, row.licence)


def _hub(repository: str, source: str, revision: str | None, sha256: str | None) -> Found:
    folder = hub.placed_folder(repository, revision)
    if not os.path.isdir(folder):
        folder = hub.download(repository, repository, revision, config=True)
    return _folder(folder, sha256, origin=source)


def _folder(folder: str, sha256: str | None, origin: str | None = None) -> Found:
    return _file(_weights_in(folder), sha256, origin)


def _weights_in(folder: str) -> str:
    files = sorted(os.listdir(folder))
    for name in hub.WEIGHTS_FILES:
        if name in files:
            return os.path.join(folder, name)
    raise WeightsError(
        f"{folder}: it has neither {' nor '.join(hub.WEIGHTS_FILES)} nor {CHECKPOINTS}/; name the "
        f"weight file itself (in it: {', '.join(files[:5]) or 'nothing'})."
    )


def _file(path: str, sha256: str | None, origin: str | None = None) -> Found:
    state_dict, origin = _read(path, sha256), origin or path
    if config := read_config(os.path.dirname(path) or "."):
        return Found(origin, state_dict, *config)
    # Published files are called densenet121-a639ec97.pth, densenet121_weights_tf_dim_....h5
    stem = os.path.basename(path)
    variants = [name for name in list_models() if stem.startswith(name)]
    return Found(origin, state_dict, max(variants, key=len, default=None))


def _read(path: str, sha256: str | None) -> dict[str, np.ndarray]:
    hub.check_hash(path, sha256)
    return read(path)


def is_run(source: str | os.PathLike[str]) -> bool:
    """Returns whether a source is the directory of a run: a folder with checkpoints."""
    return os.path.isdir(os.path.join(source, CHECKPOINTS))


def _run(folder: str, read_run: ReadRun | None) -> Found:
    if read_run is None:
        raise WeightsError(
            f"{folder}: it is the directory of a run; densenet_jax.load_pretrained reads its "
            "checkpoints."
        )
    model, variables, preprocessing = read_run(folder)
    state_dict = names.to_state_dict(model, variables, "densenet_jax")
    return Found(folder, state_dict, model, {}, preprocessing)


def _base(found: Found, model: str | nn.Module | None, overrides: dict[str, Any]) -> nn.Module:
    """Returns the model that the weights belong to, before its head and stem are decided."""
    if isinstance(model, nn.Module) and overrides:
        raise ValueError(f"{', '.join(overrides)} must be fields of the model that was given.")
    if isinstance(model, nn.Module):
        return model
    if model is None and isinstance(found.model, nn.Module):
        return found.model.clone(**overrides)
    if model is None and found.model is None:
        raise WeightsError(
            f"{found.origin}: it does not say which network it belongs to; pass model=, one of "
            f"{', '.join(list_models())}."
        )
    fields = found.fields if model is None else {}
    return create_model(model or found.model, **{**fields, **overrides})
