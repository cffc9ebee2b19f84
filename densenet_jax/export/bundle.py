"""The input of an export: a trained model with its preprocessing, class names and results."""

import dataclasses
import importlib
import json
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from densenet_jax.data.sources import imagenet_classes
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.variants import identify
from densenet_jax.tasks.outputs import SOFTMAX, Outputs
from densenet_jax.training import settings
from densenet_jax.training.rundir import run_outputs, run_weights
from densenet_jax.weights import PUBLISHED, Preprocessing
from densenet_jax.weights.published import of_model
from densenet_jax.weights.trained import TRAINED


class ExportError(ValueError):
    """An export failed; the message says why and what to do."""


# A model that differs from a variant only in these fields keeps the variant's name.
_FIELDS_THAT_KEEP_THE_NAME = {
    *("num_classes", "in_channels", "dropout_rate", "drop_path_rate"),
    *("norm_momentum", "norm_epsilon", "freeze_statistics"),
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model ready for export.

    Attributes:
      model: computes in float32 and with plain operations only, without GPU-specific kernels.
      variables: {"params": ..., "batch_stats": ...} with float32 NumPy arrays as leaves.
      preprocessing: image size, crop, interpolation, mean and std that the model expects.
      class_names: in label order; empty if the model has no classifier.
      origin: where the weights come from, in words, for the model card.
      licence: of the weights; None if unknown.
      results: measured metrics in words: {"top-1": "99.44 % of 360 images of digits/test"}.
      outputs: how the outputs become probabilities or numbers.
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    origin: str
    licence: str | None = None
    results: dict[str, str] = dataclasses.field(default_factory=dict)
    outputs: Outputs = SOFTMAX

    @property
    def name(self) -> str:
        """The name of the model's variant; for a custom network, the name of its family."""
        name, fields = identify(self.model)
        if not fields.keys() - _FIELDS_THAT_KEEP_THE_NAME:
            return name
        cifar = getattr(self.model, "stem", None) == "cifar"
        return "densenet_cifar" if cifar else type(self.model).__name__.lower()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an input image."""
        size = self.preprocessing.image_size
        return size, size, self.model.in_channels

    def spec(self) -> dict[str, Any]:
        """Returns what a program needs to use the export, as a dict for JSON.

        Keys: "model" (its name), "preprocessing" (the fields of `Preprocessing`), "channels",
        "class_names" (in label order), "outputs" (see `Outputs.spec`).
        """
        return {
            "model": self.name,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "channels": self.model.in_channels,
            "class_names": list(self.class_names),
            "outputs": self.outputs.spec(),
        }


def make(
    model: nn.Module,
    variables: Any,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None = None,
    *,
    origin: str = "",
    licence: str | None = None,
    results: dict[str, str] | None = None,
    outputs: Outputs = SOFTMAX,
) -> Bundle:
    """Returns a bundle of a model and its variables.

    Args:
      model: a `DenseNet` or an `RDNet`; the bundle gets a copy that computes in float32.
      variables: {"params": ..., "batch_stats": ...}, converted to float32 NumPy arrays.
      preprocessing: image size, crop, interpolation, mean and std that the model expects.
      class_names: in label order; None: ImageNet's names for 1,000 classes, otherwise "class 0",
        "class 1", ...
      origin: where the weights come from, in words.
      licence: of the weights; None if unknown.
      results: measured metrics in words, see `Bundle`.
      outputs: how the outputs become probabilities or numbers.

    Raises:
      ExportError: the number of class names differs from the model's number of classes.
    """
    overrides: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    if isinstance(model, DenseNet):
        overrides["implementation"] = "plain"
    count = model.num_classes
    if class_names is None:
        numbered = [f"class {i}" for i in range(count)]
        class_names = imagenet_classes.names() if count == 1000 else numbered
    if len(class_names) != count:
        raise ExportError(
            f"The model has {count} classes, but there are {len(class_names)} names; give one name "
            "for each class."
        )
    variables = {key: _arrays(value) for key, value in variables.items()}
    names = imagenet_classes.readable(class_names)
    return Bundle(
        model.clone(**overrides),
        variables,
        preprocessing,
        names,
        origin,
        licence,
        results or {},
        outputs,
    )


def of_weights(source: str, **options: Any) -> Bundle:
    """Returns a bundle of published weights, or of a weights file.

    Args:
      source: a published name, a file, a folder or `hf-hub:owner/name`; see `weights.load`.
      **options: passed on to `weights.load`.

    Raises:
      WeightsError: see `weights.load`.
    """
    found, results = run_weights.load(source, **options), {}
    row = PUBLISHED.get(next(iter(of_model(source)), source))
    if row is not None and row.accuracy.top1:
        results["top-1, published"] = f"{row.accuracy.top1:g} % on ImageNet-1k's validation split"
    if source in TRAINED:
        results["top-1"] = TRAINED[source]
    return make(
        *(
            found.model,
            found.variables,
            found.preprocessing,
            found.class_names or run_weights.class_names(source),
        ),
        origin=source,
        licence=found.licence,
        results=results,
        outputs=found.outputs,
    )


def of_run(
    workdir: str, checkpoint: str = "best", config: ml_collections.ConfigDict | None = None
) -> Bundle:
    """Returns a bundle of a run's checkpoint, with the metrics of its evaluation.

    Args:
      workdir: the run's directory.
      checkpoint: `best`, `latest` or a step number.
      config: the run's configuration; None: it is read from the run's config.json.

    Raises:
      CheckpointError: there is no such run or checkpoint, or it is damaged.
    """
    config = run_weights.read_config(workdir) if config is None else config
    model, variables, preprocessing, step = run_weights.read(workdir, config, checkpoint)
    data, results = config.data, {}
    measured = settings.make_task(config).measured
    for line in _lines(pathlib.Path(workdir) / "metrics.jsonl"):
        if line.get("split") == "eval" and line.get("step") == step:
            for metric in measured:
                if metric.value(line) is not None:
                    results[metric.title] = f"{metric.show(line)} on {data.name}/{data.eval_split}"
    return make(
        *(model, variables, preprocessing, run_weights.class_names(workdir)),
        origin=f"step {step} of a run on {data.name}, seed {config.seed}",
        results=results,
        outputs=run_outputs.read(workdir, config, step),
    )


def need(package: str, extra: str | None = None) -> types.ModuleType:
    """Imports and returns an optional package.

    Args:
      package: the name to import.
      extra: the extra of densenet-jax that installs it; None: it is installed under its own name.

    Raises:
      ExportError: the package is not installed; the message gives the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        wanted = f'"densenet-jax[{extra}]"' if extra else package
        raise ExportError(
            f"The Python package {package} is missing: pip install {wanted}"
        ) from None


def _arrays(tree: Any) -> Any:
    """Returns a tree of mappings as plain dicts with float32 NumPy arrays."""
    if hasattr(tree, "items"):
        return {key: _arrays(value) for key, value in tree.items()}
    return np.asarray(tree, np.float32)


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics.jsonl; lines that are not complete JSON are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]
