"""Images for int8 quantisation: some to calibrate it, others to measure its accuracy."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from densenet_jax.data.reading import host
from densenet_jax.data.reading.files import read_file
from densenet_jax.data.sources.folders import IMAGE_SUFFIXES
from densenet_jax.export.bundle import Bundle, ExportError
from densenet_jax.training import settings

CALIBRATION_IMAGES = 256  # more images change the ranges little and take much longer
ACCURACY_IMAGES = 10_000
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images cropped as in the model's evaluation.

    Attributes:
      calibration: batches of uint8 pixels [B, H, W, C] that calibrate the ranges of activations.
      images: batches of uint8 pixels [B, H, W, C] on which float32 and int8 are compared.
      labels: of `images`, in order, [N] or [N, L]; None if unknown.
      about: describes `calibration` on the model card: "256 images of digits/train".
      on: describes `images` on the model card.
    """

    calibration: Sequence[np.ndarray]
    images: Sequence[np.ndarray]
    labels: np.ndarray | None
    about: str
    on: str


def of_run(bundle: Bundle, config: ml_collections.ConfigDict) -> Calibration:
    """Returns images of a run's data: training images to calibrate, evaluation images to compare.

    Args:
      bundle: the model, for its preprocessing.
      config: the run's configuration.

    Raises:
      DataError: the data cannot be found or read.
    """
    data = config.data
    halves = []
    wanted = (settings.train_source, CALIBRATION_IMAGES), (settings.eval_source, ACCURACY_IMAGES)
    for open_source, most in wanted:
        source = open_source(config)
        # Evenly spaced, because a folder is sorted by class: its first images have one class.
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
    """Returns the images below a folder: all to compare on, every n-th of them to calibrate.

    Args:
      bundle: the model, for its preprocessing.
      folder: searched recursively; images beyond the first `ACCURACY_IMAGES` are not used.

    Raises:
      ExportError: the folder has no image that can be read.
    """
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()]
    files = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES][:ACCURACY_IMAGES]
    examples = ({"image": read_file(path), "label": 0} for path in files)
    images, _ = _cropped(bundle, examples)
    if not images:
        raise ExportError(
            f"--calibration={folder}: the folder has no image that can be read "
            f"({', '.join(IMAGE_SUFFIXES)})."
        )
    some = images[:: -(-len(images) // CALIBRATION_IMAGES)]
    name = pathlib.Path(folder).name
    about, on = f"{len(some)} images of {name}", f"{len(images)} images of {name}"
    return Calibration(_batches(some), _batches(images), None, about, on)


def _cropped(
    bundle: Bundle, examples: Iterable[dict[str, Any]]
) -> tuple[list[np.ndarray], list[Any]]:
    """Returns the readable images, cropped as for evaluation, [H, W, C], and their labels."""
    images: list[np.ndarray] = []
    labels: list[Any] = []
    given = bundle.preprocessing
    for example in examples:
        try:
            image = host.eval_crop(
                example["image"], channels=bundle.model.in_channels, narrow=True, **given.reading
            )
        except host.ImageError:
            continue
        images.append(image)
        labels.append(example["label"])
    return images, labels


def _batches(images: list[np.ndarray]) -> list[np.ndarray]:
    return [np.stack(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
