"""Examines a few images of a split before a run: the type of their numbers, shape and range."""

import dataclasses

import numpy as np

from densenet_jax.data.reading import decoding, examples
from densenet_jax.data.reading.limits import ImageError, KindError
from densenet_jax.data.sources.source import Arrays, DataError, Source

LOOKED_AT = 8  # images, evenly spaced over the split
SMALL_RANGE = 65536 // 16  # 12 bits, in images of 16


@dataclasses.dataclass(frozen=True)
class Kind:
    """The properties that a few images of a split have in common.

    Attributes:
      dtype: type of the pixels of the first: "uint8", "uint16" or "float32".
      square: whether all have equal sides.
      low, high: their smallest and largest number.
    """

    dtype: str
    square: bool
    low: float
    high: float

    @property
    def note(self) -> str:
        """A warning about images of 16 bits of which only a few are used; "" if there is none."""
        if self.dtype != "uint16" or self.high >= SMALL_RANGE:
            return ""
        bits = max(1, int(self.high).bit_length())
        return (
            f"WARNING: the images have 16 bits, but no number above {self.high:g}: they are nearly "
            f"black. If they have {bits} bits, pass --config.data.value_range=(0,{2**bits - 1})."
        )


def look(source: Source, channels: int, exif: bool = False, count: int = LOOKED_AT) -> Kind:
    """Returns the kind of a split's images, from a few of them.

    Args:
      source: the split.
      channels: of the images, see `decoding.decode`.
      exif: whether they are turned upright.
      count: number of images to look at.

    Raises:
      DataError: an image has another number of channels.
    """
    found: list[np.ndarray] = []
    square = True
    last = max(0, len(source) - 1)
    for index in sorted({round(last * k / max(1, LOOKED_AT - 1)) for k in range(LOOKED_AT)}):
        if index >= len(source):
            break
        try:
            image = examples.read(source, index)["image"]
            found.append(decoding.decode(image, channels, exif=exif))
            height, width = decoding.dimensions(image)
            square &= height == width
        except KindError as e:
            raise DataError(
                f"{source.describe(index)}: {e}. Set --config.data.channels to the number of "
                "channels of the images, and config.data.mean and std to as many values."
            ) from e
        except ImageError:  # the run counts and names it
            continue
        if isinstance(source.examples, Arrays) or len(found) == count:
            break
    if not found:
        return Kind("uint8", True, 0, 0)
    return Kind(
        found[0].dtype.name,
        square,
        min(float(image.min()) for image in found),
        max(float(image.max()) for image in found),
    )
