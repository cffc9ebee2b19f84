"""The parts of a report that need the model, computed once and stored in the run's directory.

`write_report` then reads files only, so it runs on a machine without the data or an accelerator.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.reading import host
from densenet_jax.data.sources import imagenet_classes
from densenet_jax.data.sources.source import Arrays
from densenet_jax.report import activation_maps, feature_reuse, model_summary, pictures, predictions
from densenet_jax.report.predictions import Predictions
from densenet_jax.training import batches
from densenet_jax.training import mesh as meshes
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.experiment import Experiment

FILE = "insight.json"
PICTURES = 18  # number of pictures of the surest mistakes, and of the least sure hits
ABLATION_BATCH = 256  # images


def examine(
    setup: Experiment,
    variables: Any,
    workdir: str | pathlib.Path,
    *,
    step: int,
    ablation_examples: int = 0,
    evaluated: Evaluated | None = None,
) -> Predictions:
    """Writes predictions.npz and insight.json into a run's directory.

    Args:
      setup: the experiment, from `training.experiment.build`.
      variables: {"params": ..., "batch_stats": ...} of a checkpoint, on any device.
      workdir: the run's directory.
      step: of the checkpoint.
      ablation_examples: number of examples on which the accuracy without each single connection is
        measured, at a cost of (connections) x (examples) inferences; 0: no ablation.
      evaluated: an evaluation of the run; if it is of the same step, its predictions are reused.

    Returns:
      The predictions.
    """
    data = setup.config.data
    variables = meshes.on_every_device(variables, setup.mesh)
    names = imagenet_classes.readable(setup.eval_source.class_names)
    split = f"{data.name}/{data.eval_split}"
    if evaluated is not None and evaluated.step == step:
        found = predictions.merge(evaluated.answers, names, step=step, data=split)
    else:
        found = predictions.collect(
            setup.model,
            variables,
            setup.normalize,
            batches.eval_batches(setup),
            names,
            task=setup.task,
            step=step,
            data=split,
        )
    found = with_pictures(setup, variables, found)
    insight = {
        "step": step,
        "model": model_summary.summarize(setup.model, setup.image_shape, setup.config.batch_size),
        **_reuse(setup, variables, ablation_examples),
    }
    if jax.process_index() == 0:
        predictions.save(found, workdir)
        path = pathlib.Path(workdir) / FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(finite(insight)) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    return found


def with_pictures(setup: Experiment, variables: Any, found: Predictions) -> Predictions:
    """Adds pictures and class activation maps of the surest mistakes and the least sure hits.

    Images that cannot be read get no picture.

    Args:
      setup: the experiment.
      variables: of the model.
      found: the predictions, without pictures.
    """
    rows = [*found.surest_mistakes(PICTURES), *found.least_sure_hits(PICTURES)]
    shown, images = [], []
    for row in rows:
        try:
            images.append(_image(setup, int(found.index[row])))
        except host.ImageError:
            continue
        shown.append(row)
    if not shown:
        return found
    classes = found.classes[shown, 0]
    variables = jax.device_get(variables)
    # One device of this process is enough for a few pictures, and then holds all of the result.
    with jax.set_mesh(meshes.make_mesh(devices=jax.local_devices()[:1])):
        normalized = setup.normalize(jnp.asarray(np.stack(images)))
        if activation_maps.has_linear_head(setup.model):
            maps = activation_maps.cam(setup.model, variables, normalized, classes)
        else:
            maps = activation_maps.grad_cam(setup.model, variables, normalized, classes, "final")
    return dataclasses.replace(
        found,
        shown=np.array(shown),
        pictures=np.stack([_picture(setup, image) for image in images]),
        maps=np.asarray(maps, np.float32),
    )


def _image(setup: Experiment, index: int) -> np.ndarray:
    """Returns an example as the model sees it, [H, W, C]."""
    examples = setup.eval_source.examples
    if isinstance(examples, Arrays) and examples.fitted:
        return examples.images[index]
    return host.eval_crop(
        examples[index]["image"],
        channels=setup.config.data.channels,
        **setup.preprocessing.reading,
    )


def _picture(setup: Experiment, image: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, C] as people see it on the page, uint8 [h, w, 1 or 3]."""
    return pictures.thumbnail(pictures.shown(image, setup.preprocessing.ends))


def _reuse(setup: Experiment, variables: Any, ablation_examples: int) -> dict[str, Any]:
    """Returns the analysis of feature reuse for insight.json, see `feature_reuse`.

    Returns:
      {"reuse": [[[weight, ...], ...], ...]} by block, source and target; with
      `ablation_examples` > 0 also "ablation" (falls of the accuracy in the same structure) and
      "ablation_examples".  {} for networks other than DenseNet.
    """
    try:
        matrices = feature_reuse.reuse(variables)
    except ValueError:
        return {}
    found: dict[str, Any] = {"reuse": [matrix.tolist() for matrix in matrices]}
    if not ablation_examples:
        return found
    count = min(ablation_examples, len(setup.eval_source))
    score = scorer(setup, count)
    falls = feature_reuse.ablate(score, jax.device_get(variables))
    return {**found, "ablation": [m.tolist() for m in falls], "ablation_examples": count}


def scorer(setup: Experiment, count: int) -> Callable[[Any], float]:
    """Returns a compiled function that maps variables to the accuracy on `count` examples.

    The examples are evenly spaced over the evaluation split, which may be sorted by class.
    """
    chosen = np.linspace(0, len(setup.eval_source) - 1, count).round().astype(int)
    images = np.stack([_image(setup, int(i)) for i in chosen])
    labels = np.array([setup.eval_source.examples[int(i)]["label"] for i in chosen])
    normalize = setup.normalize

    @jax.jit
    def hits(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits: Any = setup.model.apply(variables, normalize(images))
        return (logits.argmax(-1) == labels).sum()

    def score(variables: Any) -> float:
        starts = range(0, count, ABLATION_BATCH)
        parts = [slice(start, start + ABLATION_BATCH) for start in starts]
        return sum(int(hits(variables, images[part], labels[part])) for part in parts) / count

    return score


def finite(value: Any) -> Any:
    """Returns nested lists and dicts with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
