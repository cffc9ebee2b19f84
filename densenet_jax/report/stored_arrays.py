"""Checks the arrays of predictions.npz, which other people may have written."""

from typing import Any

import numpy as np

MAX_SIDE = 4096  # pixels of a picture


def check(
    found: Any,
    shapes: dict[str, tuple[int, ...]],
    kinds: dict[str, str],
    ranges: dict[str, int],
) -> None:
    """Checks the shapes, types and ranges of the arrays of answers, and their pictures.

    Args:
      found: the answers, with the attributes "index", "class_names", "shown", "pictures" and
        "maps" that all kinds have, and those of `shapes`.
      shapes: of the other arrays, by name.
      kinds: letters of NumPy's kinds of types of those that are not integers.
      ranges: the numbers below which integers are, from 0 on.

    Raises:
      ValueError: an array is not as it must be.
    """
    shown = len(found.shown)
    shapes = shapes | {"class_names": (len(found.class_names),), "shown": (shown,)}
    shapes["index"] = (len(found.index),)
    shapes["pictures"] = (shown, *found.pictures.shape[-3:])
    shapes["maps"] = (shown, *found.maps.shape[-2:])
    kinds = kinds | {"maps": "f", "pictures": "u", "class_names": "U"}
    ranges = ranges | {"index": 2**62, "shown": len(found.index)}
    for name, shape in shapes.items():
        values = getattr(found, name)
        sound = values.shape == shape and values.dtype.kind in kinds.get(name, "iu")
        if name in ranges and sound and values.size:
            sound = values.min() >= 0 and values.max() < ranges[name]
        if name in ("pictures", "maps") and sound:
            sound = all(0 < side <= MAX_SIDE for side in shape[1:])
        if not sound:
            raise ValueError(f"its array {name} does not fit the others")
    if found.pictures.shape[-1] not in (1, 3) or found.pictures.dtype != np.uint8:
        raise ValueError("its pictures are not images")
