"""Tests whether activation maps depend on the learned weights (Adebayo et al., 2018, section 4.1).

The parts of the network get new random weights, one after another, from the classifier down to the
stem.  Maps that hardly change show edges of the image, not the regions that support a prediction.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.reading import host
from densenet_jax.evaluation import features
from densenet_jax.models import parts
from densenet_jax.report import activation_maps, pictures, shown
from densenet_jax.scores import intervals
from densenet_jax.tasks.task import bounds
from densenet_jax.training import mesh as meshes
from densenet_jax.training.experiment import Experiment

EXAMPLES = 64  # number whose maps are compared
PICTURES = 4  # number that are shown
TITLES = {"head": "classifier", "norm": "last norm", "stem": "stem"}


def measure(setup: Experiment, variables: Any, examples: int = EXAMPLES) -> dict[str, Any]:
    """Returns how alike the maps of the trained and of a more and more random network are.

    The maps explain the trained network's likeliest class, label or first number.

    Args:
      setup: the experiment.
      variables: of the trained network.
      examples: largest number of examples, evenly spread over the evaluation split.

    Returns:
      {"examples": number compared; "stages": [{"part": the last part that became random, "alike":
      mean Spearman correlation with the trained network's map, "interval"}, ...]; "shown":
      [{"image", "maps": [of the trained network, and after each stage]} (data URIs), ...]}.
    """
    part = features.spread(setup.eval_source, examples)
    setup = dataclasses.replace(setup, eval_source=part)
    images = []
    for i in range(len(part)):
        try:
            images.append(shown.image(setup, i))
        except host.ImageError:
            continue
    if not images:
        return {"examples": 0, "stages": [], "shown": []}
    variables = jax.device_get(variables)
    with jax.set_mesh(meshes.make_mesh(devices=jax.local_devices()[:1])):
        normalized = setup.normalize(jnp.asarray(np.stack(images)))
        outputs: Any = jax.jit(setup.model.apply)(variables, normalized)
        explained = outputs.argmax(axis=1)
        stages = [("", variables), *cascade(setup, variables)]
        found = [
            (name, _maps(setup, own, normalized, explained)) for name, own in stages
        ]  # of each stage, float32 [P, h, w]
    trained, rows = found[0][1], []
    for name, maps in found[1:]:
        alike = correlations(trained, maps)
        mean = float(np.nanmean(alike)) if np.isfinite(alike).any() else None
        interval = bounds(intervals.of_means(alike)[0])
        rows.append({"part": name, "alike": mean, "interval": interval})
    surest = np.argsort(-np.asarray(outputs, np.float32).max(axis=1), kind="stable")[:PICTURES]
    small = [(i, shown.small(setup, images[i])) for i in surest.tolist()]
    return {
        "examples": len(images),
        "stages": rows,
        "shown": [
            {
                "image": pictures.data_uri(image),
                "maps": [
                    pictures.data_uri(pictures.overlay(pictures.enlarged(image, 96), maps[i]))
                    for _, maps in found
                ],
            }
            for i, image in small
        ],
    }


def _maps(setup: Experiment, variables: Any, images: jax.Array, explained: jax.Array) -> np.ndarray:
    maps = activation_maps.of_outputs(setup.model, variables, images, explained)
    return np.asarray(maps, np.float32)


def cascade(setup: Experiment, variables: Any) -> list[tuple[str, Any]]:
    """Returns variables in which one more part is random each time, from the output to the input.

    Args:
      setup: the experiment.
      variables: of the trained network.

    Returns:
      [(name of the part that became random, variables), ...]; the last ones are all random.
    """
    images = jnp.zeros((1, *setup.image_shape))
    fresh = jax.device_get(jax.jit(setup.model.init)(jax.random.key(0), images))
    part_of = {name: parts.part_of(f"{name}/") for name in fresh["params"]}
    blocks = sorted((p for p in set(part_of.values()) if p[-1].isdigit()), key=lambda p: int(p[5:]))
    order = [p for p in ("head", "norm", *reversed(blocks), "stem") if p in part_of.values()]
    found, current = [], variables
    for part in order:
        current = {
            collection: {
                name: fresh[collection][name] if parts.part_of(f"{name}/") == part else value
                for name, value in own.items()
            }
            for collection, own in current.items()
        }
        found.append((TITLES.get(part, f"block {part[5:]}"), current))
    return found


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation of the maps of each example, [P, h, w] -> [P].

    It is NaN where a map is the same everywhere.
    """
    from scipy import stats  # takes half a second

    ranks = [stats.rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
