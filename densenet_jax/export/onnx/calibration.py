"""Images for int8: some to calibrate with, others to measure accuracy on."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from densenet_jax.data.reading import host
from densenet_jax.data.sources.folders import IMAGE_SUFFIXES
from densenet_jax.export.bundle import Bundle, ExportError
from densenet_jax.training import settings

CALIBRATION_IMAGES = 256  # more moves the ranges little, and the time a lot
ACCURACY_IMAGES = 10_000
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images as a model saw them in its evaluation.

    Attributes:
      calibration, images: batches of uint8 pixels [B, H, W, C].
      labels: of `images`, in order; None: unknown.
      about, on: what both are, for the card.
    """

    calibration: Sequence[np.ndarray]
    images: Sequence[np.ndarray]
    labels: np.ndarray | None
    about: str
    on: str


def of_run(bundle: Bundle, config: ml_collections.ConfigDict) -> Calibration:
    """Returns images of a run's own data: training images to calibrate, evaluation images to judge.

    Raises:
      DataError: the data are not at hand.
    """
    data = config.data
    halves = []
    wanted = (settings.train_source, CALIBRATION_IMAGES), (settings.eval_source, ACCURACY_IMAGES)
    for open_source, most in wanted:
        source = open_source(config)
        # Evenly spaced: a folder is sorted by class.
        chosen = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)
        halves.append(_cropped(bundle, (source.examples[int(i)] for i in chosen)))
    (calibration, seen), (images, labels) = halves
    return Calibration(
        _batches(calibration),
        _batches(images),
        np.asarray(labels),
        f"{len(seen)} images of {data.name}/{data.train_split}",
        f"{len(labels)} images of {data.name}/{data.eval_split}",
    )


def of_folder(bundle: Bundle, folder: str) -> Calibration:
    """Returns the images below a folder, all to compare on, the first ones of them to calibrate.

    Raises:
      ExportError: there are none that can be read.
    """
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()]
    files = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES][:ACCURACY_IMAGES]
    examples = ({"image": path.read_bytes(), "label": 0} for path in files)
    images, _ = _cropped(bundle, examples)
    if not images:
        raise ExportError(
            f"--calibration={folder}: no image there can be read ({', '.join(IMAGE_SUFFIXES)})."
        )
    some = images[:: -(-len(images) // CALIBRATION_IMAGES)]
    name = pathlib.Path(folder).name
    about, on = f"{len(some)} images of {name}", f"{len(images)} images of {name}"
    return Calibration(_batches(some), _batches(images), None, about, on)


def _cropped(
    bundle: Bundle, examples: Iterable[dict[str, Any]]
) -> tuple[list[np.ndarray], list[int]]:
    """Returns the images that can be read, cropped as for evaluation, and their labels."""
    images, labels, given = [], [], bundle.preprocessing
    for example in examples:
        try:
            image = host.eval_crop(
                example["image"],
                image_size=given.image_size,
                channels=bundle.model.in_channels,
                crop_fraction=given.crop_fraction,
                interpolation=given.interpolation,
            )
        except host.ImageError:
            continue
        images.append(image)
        labels.append(int(example["label"]))
    return images, labels


def _batches(images: list[np.ndarray]) -> list[np.ndarray]:
    return [np.stack(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
