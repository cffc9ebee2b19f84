"""Finds weights by name, hub repository, file or folder, and loads them into a model."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flax import linen as nn

from densenet_jax.models.variants import VARIANTS, create_model, list_models, nearest
from densenet_jax.tasks.outputs import SOFTMAX, Outputs
from densenet_jax.weights import adapt, hub, keras_preset, names, trained
from densenet_jax.weights.body import guess, within
from densenet_jax.weights.files import INDEXES, check_regular, read
from densenet_jax.weights.folders import SUFFIXES, head_of, is_preset, is_run, weights_in
from densenet_jax.weights.infer_variant import from_tensors, named_after
from densenet_jax.weights.published import IMAGENET, PUBLISHED, Preprocessing, model_of, of_model
from densenet_jax.weights.ranges import check_sizes
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import read_config
from densenet_jax.weights.trained import TRAINED

logger = logging.getLogger(__name__)

# Maps the directory of a run to (model, variables of its best checkpoint, preprocessing, outputs).
ReadRun = Callable[[str], tuple[nn.Module, Any, Preprocessing, Outputs]]


@dataclass(frozen=True)
class Found:
    """Weights that were read, but not yet loaded into a model.

    Attributes:
      origin: name, repository or path of the weights, for messages.
      state_dict: {name: array}, with the names and layouts of the file.
      model: name of the variant, or the model itself, that the weights belong to; None: unknown.
      fields: fields of the model that differ from the variant.
      preprocessing: how the images were prepared.
      licence: licence of the weights; None: unknown.
      outputs: how the outputs become probabilities or numbers.
      class_names: in label order; None: unknown.
    """

    origin: str
    state_dict: dict[str, np.ndarray]
    model: str | nn.Module | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = IMAGENET
    licence: str | None = None
    outputs: Outputs = SOFTMAX
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Pretrained:
    """A model with weights.

    Attributes:
      model: the Flax Linen module.
      variables: {"params": ..., "batch_stats": ...} with NumPy arrays.
      preprocessing: how to prepare the images.
      licence: licence of the weights; None: unknown.
      report: which variables were loaded, adapted and newly initialised.
      notes: what else a user should know, in sentences.
      outputs: how the model's outputs become probabilities or numbers.
      class_names: in label order; None: unknown, or the classifier is newly initialised.
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    licence: str | None
    report: adapt.Report
    notes: tuple[str, ...] = ()
    outputs: Outputs = SOFTMAX
    class_names: tuple[str, ...] | None = None


def load(
    source: str | os.PathLike[str],
    model: str | nn.Module | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    prefix: str | None = None,
    seed: int = 0,
    read_run: ReadRun | None = None,
    **overrides: Any,
) -> Pretrained:
    """Loads published weights, a weight file or a checkpoint into a model.

    Args:
      source: a published name such as `densenet121.ra_in1k` (the name of a variant stands for its
        first published weights), a hub repository `hf-hub:owner/name` or
        `hf-hub:owner/name@revision`, a weight file, a folder with a weight file (and optionally
        timm's `config.json`), or the directory of a run.
      model: the variant or the model that the weights belong to. None: the source says it.
      num_classes: number of classes; 0 gives a model without a classifier, which returns pooled
        features. The classifier is initialised from `seed` only if the weights have another number
        of classes. None: as in the weights, or as in `model` if that is a module.
      in_channels: number of input channels; the stem's kernel is adapted, see
        `adapt.adapt_channels`. None: as in the weights, or as in `model` if that is a module.
      revision: branch, tag or commit on the hub.
      sha256: the expected SHA-256 of the weight file, in hexadecimal digits. None: only large files
        in the hub's cache are checked.
      prefix: the module of the file that holds the network, if it has several, such as "student".
      seed: seed for the initialisation of a classifier.
      read_run: function that reads the directory of a run; `training.rundir.run_weights.load`
        passes it, because this package does not import the training code. None: such directories
        are refused.
      **overrides: fields of the module, see `create_model`.

    Returns:
      The model, its variables, the preprocessing, the licence and a report.

    Raises:
      WeightsError: the weights are not found or do not fit; the message says what to do.
      ValueError: a model or field is unknown, or `overrides` are given along with a module.
    """
    found = find(os.fspath(source), revision, sha256, read_run)
    base = network(found, model, overrides, prefix)
    with _naming(found.origin):
        matching = names.match(base, found.state_dict, prefix)
        names.check_names(matching)
    classes, channels = adapt.sizes(matching)
    fields: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if not isinstance(model, nn.Module):
        given = {"num_classes": classes, "in_channels": channels} | overrides
        fields = {k: given.get(k) if v is None else v for k, v in fields.items()}
        if fields["num_classes"] is None:
            with _naming(found.origin):
                raise matching.head.refuse(0)
        if "norm_epsilon" not in overrides:
            fields["norm_epsilon"] = matching.convention.norm_epsilon
        if "stem" not in overrides:
            fields["stem"] = matching.convention.stem
    base = base.clone(**{k: v for k, v in fields.items() if v is not None})
    with _naming(found.origin):
        names.check_stem(base, matching)
        variables, report = adapt.merge(base, matching, seed)
    (logger.warning if matching.outside else logger.info)("%s: %s.", found.origin, report)
    preprocessing = found.preprocessing.for_channels(base.in_channels)
    meaning: dict[str, Any] = {"outputs": found.outputs, "class_names": found.class_names}
    if len(found.outputs.thresholds) > 1 and len(found.outputs.thresholds) != classes:
        with _naming(found.origin):
            raise WeightsError(
                f"it has thresholds for {len(found.outputs.thresholds)} labels and a classifier "
                f"for {classes}."
            )
    if report.fresh or not base.num_classes:  # the answers are no longer those of the file
        meaning = {}
    return Pretrained(base, variables, preprocessing, found.licence, report, **meaning)


def find(
    source: str,
    revision: str | None = None,
    sha256: str | None = None,
    read_run: ReadRun | None = None,
) -> Found:
    """Reads the weights of a source; see `load` for the arguments and errors."""
    if source.startswith(hub.HUB_PREFIXES):
        repository, _, pinned = source.partition(":")[2].partition("@")
        if pinned and revision and pinned != revision:
            raise WeightsError(
                f"{source} names another revision than revision={revision!r}; keep one of them."
            )
        return _hub(repository, source, pinned or revision, sha256)
    name = next(iter(of_model(source)), source)
    if name in PUBLISHED or name in TRAINED:
        if os.path.exists(source):
            logger.warning(
                "%s: the published weights are loaded; write ./%s for the file or folder.",
                *(source, source),
            )
        if name in PUBLISHED:
            return _published(name, revision, sha256)
    path = os.path.expanduser(trained.path_of(source).removeprefix("file://"))
    if "://" in path:
        raise WeightsError(f"{source}: addresses are not opened; download the file first.")
    if os.path.exists(path):
        if revision:
            raise WeightsError(
                f"{source}: it is on this machine and has no revision={revision!r}; leave it out."
            )
        if is_run(path):
            return _run(path, sha256, read_run)
        origin = source if source in TRAINED else None
        return _file(weights_in(path) if os.path.isdir(path) else path, sha256, origin)
    if name in VARIANTS:
        raise WeightsError(
            f"No weights of {name} are published; use one of the models that have some: "
            f"{', '.join(dict.fromkeys(map(model_of, PUBLISHED)))}."
        )
    if os.path.exists(f"{path}.index"):  # TensorFlow's users pass the prefix
        return _file(f"{path}.index", sha256)  # which refuses it by name
    if os.sep in source or source.lower().endswith(SUFFIXES):
        raise WeightsError(f"{source}: there is no such file; check the path.")
    raise WeightsError(
        f"There are no weights {source!r}. {nearest(source, [*PUBLISHED, *TRAINED])}"
    )


def _published(name: str, revision: str | None, sha256: str | None) -> Found:
    """Reads published weights from the folder for files downloaded by hand, else from the hub."""
    row, folder = PUBLISHED[name], hub.placed_folder(name, revision)
    if not os.path.isdir(folder):
        folder = hub.download(row.repository, name, revision, config=False)
    state_dict = _read(weights_in(folder), sha256)
    return Found(name, state_dict, model_of(name), {}, row.preprocessing, row.licence)


def _hub(repository: str, source: str, revision: str | None, sha256: str | None) -> Found:
    """Reads a hub repository from the folder for files downloaded by hand, else from the hub."""
    folder = hub.placed_folder(repository, revision)
    if not os.path.isdir(folder):
        folder = hub.download(repository, repository, revision, config=True)
    return _file(weights_in(folder), sha256, origin=source)


def _file(path: str, sha256: str | None, origin: str | None = None) -> Found:
    """Reads a weight file, and timm's `config.json` beside it if there is one."""
    origin = origin or path
    config = read_config(os.path.dirname(path) or ".")
    if (head := head_of(path)) and sha256:
        raise WeightsError(
            f"{origin}: it consists of two files, {os.path.basename(path)} and "
            f"{os.path.basename(head)}, which have no common SHA-256; leave sha256 out."
        )
    state_dict = _read(path, sha256)
    if head:
        state_dict |= _read(head, None)
    if config is None:
        preprocessing = IMAGENET
        if is_preset(path):
            preprocessing = keras_preset.read_preprocessing(os.path.dirname(path) or ".")
        outputs = _operating_points(state_dict)
        name, fields = named_after(path), {}
        if name is None:
            name, fields = from_tensors(state_dict) or (None, {})
        return Found(origin, state_dict, name, fields, preprocessing, outputs=outputs)
    try:
        check_sizes(config.fields, state_dict)
    except ValueError as error:
        raise WeightsError(
            f"{origin}: its configuration and its weights do not belong together: {error}."
        ) from None
    return Found(origin, state_dict, *config)


def _operating_points(state_dict: dict[str, np.ndarray]) -> Outputs:
    """Returns what the outputs mean by TorchXRayVision's buffer `op_threshs`, which it removes.

    The buffer has the probability from which on each label counts as present, NaN where that is not
    known: 0.5 then.  Its networks have a sigmoid for each label.
    """
    names = [name for name in state_dict if name.rpartition(".")[2] == "op_threshs"]
    if len(names) != 1:
        return SOFTMAX
    points = np.atleast_1d(np.asarray(state_dict.pop(names[0]), np.float64)).ravel()
    points = np.where(np.isfinite(points), points, 0.5).clip(0, 1)
    logger.info("%s holds the thresholds of %d labels.", names[0], len(points))
    return Outputs("multilabel", "sigmoid", thresholds=tuple(points.tolist()))


def _read(path: str, sha256: str | None) -> dict[str, np.ndarray]:
    """Checks the SHA-256 of a weight file and returns its tensors {name: array}."""
    check_regular(path)
    if sha256 and path.endswith(INDEXES):
        raise WeightsError(
            f"{path}: it lists several files, which have no common SHA-256; leave sha256 out."
        )
    hub.check_hash(path, sha256)
    return read(path)


def _run(folder: str, sha256: str | None, read_run: ReadRun | None) -> Found:
    """Reads the best checkpoint in the directory of a run."""
    if sha256:
        raise WeightsError(
            f"{folder}: it is the directory of a run, which has no single SHA-256; its checkpoints "
            "have checksums of their own, so leave sha256 out."
        )
    if read_run is None:
        raise WeightsError(
            f"{folder}: it is the directory of a run; load it with densenet_jax.load_pretrained."
        )
    model, variables, preprocessing, outputs = read_run(folder)
    state_dict = names.to_state_dict(model, variables, "densenet_jax")
    return Found(folder, state_dict, model, {}, preprocessing, outputs=outputs)


def network(
    found: Found,
    model: str | nn.Module | None,
    overrides: dict[str, Any] | None = None,
    prefix: str | None = None,
) -> nn.Module:
    """Returns the model that weights belong to, before its head and stem are adapted.

    Args:
      found: the weights.
      model, overrides, prefix: see `load`.
    """
    overrides = overrides or {}
    if prefix and found.model is None:
        chosen = {name: found.state_dict[name] for name in within(prefix, found.state_dict)}
        name, fields = from_tensors(chosen) or (None, {})
        found = dataclasses.replace(found, model=name, fields=fields)
    if isinstance(model, nn.Module) and overrides:
        raise ValueError(
            f"{', '.join(overrides)} must be fields of the model that was given; set them there."
        )
    if isinstance(model, nn.Module):
        return model
    if model is None and isinstance(found.model, nn.Module):
        return found.model.clone(**overrides)
    if model is None and found.model is None:
        if problem := _unlike(found.state_dict):
            raise WeightsError(f"{found.origin}: {problem}.")
        raise WeightsError(
            f"{found.origin}: the weights do not say which network they belong to (their names are "
            f"{', '.join(sorted(found.state_dict)[:3])}, ...); pass model= (--model=NAME on the "
            f"command line), one of {', '.join(list_models())}; if they are several networks, "
            "prefix= (--prefix=NAME) chooses one."
        )
    fields = found.fields if model is None else {}
    try:
        return create_model(cast(str, model or found.model), **{**fields, **overrides})
    except ValueError as error:
        if model or overrides:
            raise
        raise WeightsError(f"{found.origin}: its configuration is wrong: {error}") from None


def _unlike(state_dict: dict[str, np.ndarray]) -> str:
    """Returns why the tensors are of another architecture; "": that is unknown."""
    if any(tensor.ndim == 5 for tensor in state_dict.values()):
        return "its network is three-dimensional, but this package has networks for images only"
    other, some = guess(state_dict), ", ".join(sorted(state_dict)[:3])
    if not other:
        return ""
    return f"the names of the tensors ({some}) are those of {other}, which this package lacks"


@contextlib.contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Puts the origin of the weights before the message of an error."""
    try:
        yield
    except WeightsError as error:
        error.args = (f"{origin}: {error}",)
        raise
