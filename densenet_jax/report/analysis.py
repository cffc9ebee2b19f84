"""Everything in a report that needs the model: examined once, kept as files of the run.

`write_report` then works from files alone, on a machine that has neither data nor accelerator.
"""

import dataclasses
import json
import math
import os
import pathlib
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
PICTURES = 18  # of the surest mistakes, and as many of the least sure hits
ABLATION_BATCH = 256


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
      setup: as `training.experiment.build` returns it.
      variables: the model's, of a checkpoint, on any device.
      step: of the checkpoint.
      ablation_examples: examples on which every connection's removal is tried, one after the other;
        0: none. It costs (connections) x (examples) inferences.
      evaluated: the evaluation of that step, if the run has just made it; it is not made again.

    Returns:
      the predictions.
    """
    data = setup.config.data
    variables = meshes.on_every_device(variables, setup.mesh)
    names = imagenet_classes.readable(setup.eval_source.class_names)
    of = {"step": step, "data": f"{data.name}/{data.eval_split}"}
    if evaluated is not None and evaluated.step == step:
        found = predictions.merge(evaluated.answers, names, **of)
    else:
        split = batches.eval_batches(setup)
        args = (setup.model, variables, setup.normalize, split, names)
        found = predictions.collect(*args, task=setup.task, **of)
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
    """Returns the predictions with pictures and maps of the surest mistakes and least sure hits."""
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
    images, classes = np.stack(images), found.classes[shown, 0]
    variables = jax.device_get(variables)
    # A few pictures: a device of this process is enough, and has all of the result.
    with jax.set_mesh(meshes.make_mesh(devices=jax.local_devices()[:1])):
        normalized = setup.normalize(jnp.asarray(images))
        if activation_maps.has_linear_head(setup.model):
            maps = activation_maps.cam(setup.model, variables, normalized, classes)
        else:
            maps = activation_maps.grad_cam(setup.model, variables, normalized, classes, "final")
    return dataclasses.replace(
        found,
        shown=np.array(shown),
        pictures=np.stack([pictures.thumbnail(image) for image in images]),
        maps=np.asarray(maps, np.float32),
    )


def _image(setup: Experiment, index: int) -> np.ndarray:
    """Returns an example as the model sees it, uint8 [H, W, C]."""
    data, examples = setup.config.data, setup.eval_source.examples
    if isinstance(examples, Arrays) and examples.fitted:
        return examples.images[index]
    return host.eval_crop(
        examples[index]["image"],
        image_size=data.image_size,
        channels=data.channels,
        crop_fraction=data.eval_crop,
        interpolation=data.interpolation,
    )


def _reuse(setup: Experiment, variables: Any, ablation_examples: int) -> dict[str, Any]:
    """Returns figure 5, and the live version of it if it is asked for; {} for other networks."""
    try:
        matrices = feature_reuse.reuse(variables)
    except ValueError:
        return {}
    found = {"reuse": [matrix.tolist() for matrix in matrices]}
    if not ablation_examples:
        return found
    count = min(ablation_examples, len(setup.eval_source))
    score = scorer(setup, count)
    falls = feature_reuse.ablate(score, jax.device_get(variables))
    return {**found, "ablation": [m.tolist() for m in falls], "ablation_examples": count}


def scorer(setup: Experiment, count: int):
    """Returns the compiled function from variables to the accuracy on `count` examples.

    They are spread over the split, which may be sorted by class.
    """
    chosen = np.linspace(0, len(setup.eval_source) - 1, count).round().astype(int)
    images = np.stack([_image(setup, int(i)) for i in chosen])
    labels = np.array([setup.eval_source.examples[int(i)]["label"] for i in chosen])
    normalize = setup.normalize

    @jax.jit
    def hits(variables, images, labels):
        logits = setup.model.apply(variables, normalize(images))
        return (logits.argmax(-1) == labels).sum()

    def score(variables) -> float:
        starts = range(0, count, ABLATION_BATCH)
        parts = [slice(start, start + ABLATION_BATCH) for start in starts]
        return sum(int(hits(variables, images[part], labels[part])) for part in parts) / count

    return score


def finite(value: Any) -> Any:
    """Returns lists and dicts with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
