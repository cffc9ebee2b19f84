"""Mean, standard deviation and range of a split's images, and the flags that normalise them."""

import dataclasses

import numpy as np

from densenet_jax.data.reading import examples, host, kinds
from densenet_jax.data.reading.limits import ImageError
from densenet_jax.data.sources.source import DataError, Source

PERCENTILES = (0.1, 1, 50, 99, 99.9)
KEPT = 4096  # numbers of each channel and image, from which percentiles are computed


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What `measure` finds, in the numbers of the images, one value for each channel.

    Attributes:
      kind: type and range of a few of the images.
      images: how many were measured.
      unreadable: how many could not be read.
      mean, std: mean and standard deviation over all pixels, float64 [C].
      percentiles: of `PERCENTILES`, float64 [P, C].
    """

    kind: kinds.Kind
    images: int
    unreadable: int
    mean: np.ndarray
    std: np.ndarray
    percentiles: np.ndarray

    @property
    def ends(self) -> tuple[float, float]:
        """Numbers that can stand for 0 and 1: the type's own, or for few bits and floats others."""
        low, high = float(self.percentiles[0].min()), float(self.percentiles[-1].max())
        if self.kind.dtype == "float32":
            return (low, high) if low < high else (low, low + 1)
        if self.kind.dtype == "uint8":
            return 0.0, 255.0
        return 0.0, 2.0 ** max(1, int(self.kind.high).bit_length()) - 1

    def flags(self) -> list[str]:
        """Returns the flags that normalise these images."""
        low, high = self.ends
        mean, std = (self.mean - low) / (high - low), self.std / (high - low)
        found = (
            [] if self.kind.dtype == "uint8" else [f"--config.data.value_range=({low:g},{high:g})"]
        )
        for name, values in (("mean", mean), ("std", np.maximum(std, 1e-6))):
            found.append(f"--config.data.{name}=({','.join(f'{v:.4g}' for v in values)},)")
        return found


def measure(
    source: Source,
    *,
    image_size: int = 224,
    channels: int = 3,
    exif: bool = False,
    images: int = 2000,
) -> Statistics:
    """Returns the statistics of a split's images, distorted to squares so that all count alike.

    Args:
      source: the split.
      image_size: height and width to which the images are resized.
      channels: of the images.
      exif: whether they are turned upright.
      images: largest number of images to read, evenly spaced over the split.

    Raises:
      DataError: no image can be read, or one has other channels or another type than the first.
    """
    kind = kinds.look(source, channels)
    low, high = kind.low, kind.high
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    kept: list[np.ndarray] = []
    unreadable = 0
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, len(source) - 1, min(images, len(source))).round().astype(int)
    for index in chosen.tolist():
        try:
            pixels = host.eval_crop(
                examples.read(source, index)["image"],
                image_size=image_size,
                channels=channels,
                crop_fraction=1.0,
                interpolation="bilinear",
                fit="squash",
                dtype=kind.dtype,
                exif=exif,
            )
        except host.KindError as e:
            raise DataError(f"{source.describe(index)}: {e}, unlike the first image.") from e
        except ImageError:
            unreadable += 1
            continue
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        rows = pixels.reshape(-1, channels).astype(np.float64)
        count, total = count + len(rows), total + rows.sum(0)
        squares += np.square(rows).sum(0)
        kept.append(rows[rng.integers(0, len(rows), min(KEPT, len(rows), 2**22 // channels))])
    if not count:
        raise DataError(f"No image of {source.name} can be read; check the data set.")
    mean = total / count
    return Statistics(
        dataclasses.replace(kind, low=low, high=high),
        len(chosen) - unreadable,
        unreadable,
        mean,
        np.sqrt(np.maximum(squares / count - mean**2, 0)),
        np.percentile(np.concatenate(kept), PERCENTILES, axis=0),
    )


def describe(found: Statistics, name: str) -> str:
    """Returns statistics as a table, with the flags to set below it.

    Args:
      found: the statistics.
      name: of the split.
    """
    unreadable = f", {found.unreadable} more are unreadable" if found.unreadable else ""
    lines = [f"{found.images} images of {name}, {found.kind.dtype}{unreadable}"]
    heads = ("mean", "std", *(f"{p:g} %" for p in PERCENTILES))
    lines.append(" ".join(["channel", *(f"{head:>10}" for head in heads)]))
    for k, column in enumerate(np.vstack([found.mean, found.std, found.percentiles]).T):
        lines.append(" ".join([f"{k:7}", *(f"{value:10.5g}" for value in column)]))
    return "\n".join([*lines, *found.flags()])
