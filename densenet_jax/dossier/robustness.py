"""How the first metric of a task changes under noise, blur, JPEG compression and brightness.

Images are changed after crop and resizing, as the network sees them.  Strengths are relative to the
range of the pixels or to the side of the image, so that they mean the same for every kind of image
(after Hendrycks and Dietterich, 2019, whose strengths are for images of one size).
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.evaluation import features, scores, splits
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.training import batches
from densenet_jax.training.experiment import Experiment


class Change(NamedTuple):
    """A kind of change.

    Attributes:
      name: for people.
      unit: what a strength is, with {} for its value.
      strengths: from weak to strong.
      apply: maps an image in [0, 1], float32 [H, W, C], a strength and a random generator to the
        changed image.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Adds independent normal noise of this standard deviation to every number."""
    return image + strength * random.standard_normal(image.shape, np.float32)


def blur(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Blurs with a Gaussian whose standard deviation is this share of the height."""
    sigma = strength * image.shape[0]
    channels = [cv2.GaussianBlur(c, (0, 0), sigma) for c in np.moveaxis(image, 2, 0)]
    return np.stack(channels, axis=2)


def jpeg(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Saves as JPEG of this quality: three channels as colours, others one by one, in 8 bits."""
    pixels = (image * 255).round().clip(0, 255).astype(np.uint8)
    parts = [pixels] if image.shape[2] == 3 else list(np.moveaxis(pixels, 2, 0))
    found = []
    for part in parts:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(part)).save(file, "JPEG", quality=int(strength))
        found.append(np.asarray(Image.open(file)))
    whole = found[0] if image.shape[2] == 3 else np.stack(found, axis=2)
    return whole.astype(np.float32) / 255


def light(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Adds a constant to every number."""
    return image + strength


CHANGES = (
    Change("noise", "standard deviation {:.0%} of the range", (0.04, 0.08, 0.16), noise),
    Change("blur", "standard deviation {:.1%} of the side", (0.0125, 0.025, 0.05), blur),
    Change("JPEG", "quality {:.0f}", (50, 25, 10), jpeg),
    Change("brighter", "by {:.0%} of the range", (0.1, 0.2, 0.3), light),
    Change("darker", "by {:.0%} of the range", (-0.1, -0.2, -0.3), light),
)


def measure(
    setup: Experiment, variables: Any, outputs: Outputs, images: int
) -> list[dict[str, Any]]:
    """Returns the first metric of the task on unchanged and on changed images.

    Args:
      setup: as `training.experiment.build` returns it; its mesh must be the current one.
      variables: the model's variables, {"params", "batch_stats"}, on that mesh.
      outputs: what the model's outputs mean, with calibration and thresholds.
      images: largest number of examples, evenly spread over the evaluation split.

    Returns:
      [{"change" ("" for none), "strength" (text), "examples", the metric's key: value,
      "interval": [low, high] (95 %, by bootstrap; None: undefined)}, ...]; the first row is that of
      unchanged images.
    """
    config = setup.config.copy_and_resolve_references()
    config.data.in_memory = True
    part = features.spread(setup.eval_source, images)
    held = batches.in_memory(dataclasses.replace(setup, config=config), part, train=False)
    score = splits.scorer(setup)  # compiled once

    def row(source: Source, change: str, strength: str) -> dict[str, Any]:
        found = scores.collect(score, variables, batches.eval_batches(setup, source))
        return {"change": change, "strength": strength, **_result(setup, outputs, source, found)}

    rows = [row(held, "", "")]
    for change in CHANGES:
        for strength in change.strengths:
            source = changed(held, setup.preprocessing.ends, change, strength)
            words = change.unit.format(abs(strength))
            rows.append(row(source, change.name, words))
    return rows


def changed(held: Source, ends: tuple[float, float], change: Change, strength: float) -> Source:
    """Returns a split in memory with changed images, the same ones every time.

    Args:
      held: its examples are `Arrays` of images [N, H, W, C].
      ends: the numbers that are black and white.
      change: its kind.
      strength: one of `change.strengths`.
    """
    examples = held.examples
    assert isinstance(examples, Arrays)
    low, high = ends
    images = np.empty_like(examples.images)
    for i, image in enumerate(examples.images):
        unit = (image.astype(np.float32) - low) / (high - low)
        # Numbers outside the range from black to white, as in CT, stay; only the change is clipped.
        floor, ceiling = min(0.0, float(unit.min())), max(1.0, float(unit.max()))
        new = change.apply(unit, strength, np.random.default_rng(i)).clip(floor, ceiling)
        new = new * (high - low) + low
        images[i] = new.round() if images.dtype.kind == "u" else new
    return dataclasses.replace(held, examples=Arrays(images, examples.labels, examples.bad))


def _result(
    setup: Experiment, outputs: Outputs, source: Source, found: scores.Scores
) -> dict[str, Any]:
    """Returns the first metric of the task with its interval, and the number of examples."""
    groups, metric = source.groups_of(found["index"]), setup.task.measured[0]
    summary = setup.task.summary(found, source.class_names, outputs, groups)
    interval = summary.get("intervals", {}).get(metric.key)
    if len(summary["classes"]) == 1:
        interval = interval or summary["classes"][0].get(f"{metric.key}_interval")
    result = {"examples": summary["examples"], "interval": interval}
    return {**result, metric.key: summary[metric.key]}
