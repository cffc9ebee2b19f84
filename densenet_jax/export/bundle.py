"""What is exported: a trained model, and what whoever uses it elsewhere has to know."""

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
from densenet_jax.training import settings
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import PUBLISHED, Preprocessing
from densenet_jax.weights.published import of_model


class ExportError(ValueError):
    """Something cannot be exported; what to do about it."""


# Fields that leave a variant what it is.
_OF_NO_SHAPE = {
    *("num_classes", "in_channels", "dropout_rate", "drop_path_rate"),
    *("norm_momentum", "norm_epsilon", "freeze_statistics"),
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model ready for export.

    Attributes:
      model: it computes in float32, and by plain operations: no kernel of one GPU.
      variables: NumPy arrays.
      preprocessing: of the images that it was trained on.
      class_names: in label order; empty if it has no classifier.
      origin: where its weights come from, for its card.
      licence: of the weights; None: unknown.
      results: what was measured, in words: {"top-1": "99.44 % of 360 images of digits/test"}.
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    origin: str
    licence: str | None = None
    results: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The variant's name; of a network that is none of them, its family's."""
        name, fields = identify(self.model)
        if not fields.keys() - _OF_NO_SHAPE:
            return name
        cifar = getattr(self.model, "stem", None) == "cifar"
        return "densenet_cifar" if cifar else type(self.model).__name__.lower()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        size = self.preprocessing.image_size
        return size, size, self.model.in_channels

    def spec(self) -> dict[str, Any]:
        """Returns what a program that uses the export needs, as JSON has it."""
        return {
            "model": self.name,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "channels": self.model.in_channels,
            "class_names": list(self.class_names),
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
) -> Bundle:
    """Returns a model with variables as a bundle.

    Raises:
      ExportError: the names do not fit the model.
    """
    how = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    if isinstance(model, DenseNet):
        how["implementation"] = "plain"
    count = model.num_classes
    if class_names is None:
        plain = [f"class {i}" for i in range(count)]
        class_names = imagenet_classes.names() if count == 1000 else plain
    if len(class_names) != count:
        raise ExportError(f"The model has {count} classes, but there are {len(class_names)} names.")
    variables = {key: _arrays(value) for key, value in variables.items()}
    names = imagenet_classes.readable(class_names)
    return Bundle(
        model.clone(**how), variables, preprocessing, names, origin, licence, results or {}
    )


def of_weights(source: str, **options: Any) -> Bundle:
    """Returns published weights, or those of a file, as a bundle; options as `weights.load` has.

    Raises:
      WeightsError: see `weights.load`.
    """
    found, results = run_weights.load(source, **options), {}
    row = PUBLISHED.get(next(iter(of_model(source)), source))
    if row is not None and row.accuracy.top1:
        results["top-1, published"] = f"{row.accuracy.top1:g} % on ImageNet-1k's validation split"
    return make(
        *(found.model, found.variables, found.preprocessing),
        origin=source,
        licence=found.licence,
        results=results,
    )


def of_run(
    workdir: str, checkpoint: str = "best", config: ml_collections.ConfigDict | None = None
) -> Bundle:
    """Returns a checkpoint of a run as a bundle, with what its evaluation said.

    Args:
      workdir: the run's directory.
      checkpoint: `best`, `latest` or a step.
      config: the run's; None: it is read.

    Raises:
      CheckpointError: see `training.runs.read`.
    """
    config = run_weights.read_config(workdir) if config is None else config
    model, variables, preprocessing, step = run_weights.read(workdir, config, checkpoint)
    data, results = config.data, {}
    for line in _lines(pathlib.Path(workdir) / "metrics.jsonl"):
        if line.get("split") == "eval" and line.get("step") == step:
            for metric in settings.make_task(config).measured:
                if metric.value(line) is not None:
                    results[metric.title] = f"{metric.show(line)} on {data.name}/{data.eval_split}"
    return make(
        *(model, variables, preprocessing, run_weights.class_names(workdir)),
        origin=f"step {step} of a run on {data.name}, seed {config.seed}",
        results=results,
    )


def need(package: str, extra: str | None = None) -> types.ModuleType:
    """Returns an optional package; it comes with `extra`, or by itself.

    Raises:
      ExportError: it is not installed; how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        wanted = f'"densenet-jax[{extra}]"' if extra else package
        raise ExportError(
            f"The Python package {package} is missing: pip install {wanted}"
        ) from None


def _arrays(tree: Any) -> Any:
    if hasattr(tree, "items"):
        return {key: _arrays(value) for key, value in tree.items()}
    return np.asarray(tree, np.float32)


def _lines(path: pathlib.Path) -> list[dict]:
    """Returns the records of a run's metrics; a torn last line is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]
