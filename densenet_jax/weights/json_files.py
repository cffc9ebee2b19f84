"""Reads small JSON files that lie beside weights."""

import json
import os
from collections.abc import Callable
from typing import Any

from densenet_jax.weights.readers.bounded_file import WeightsError

MAX_BYTES = 1 << 20


def parse_json(path: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """Returns `parse(contents)` of a file; None: its contents are not a JSON object.

    Raises:
      WeightsError: the file is too large or damaged, or `parse` fails.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise WeightsError(
            f"{path}: it has over {MAX_BYTES} bytes, so it is not a configuration; remove it."
        )
    try:
        with open(path, encoding="utf-8") as file:
            contents = json.load(file)
        return parse(contents) if isinstance(contents, dict) else None
    except (
        *(LookupError, ValueError, TypeError),
        *(AttributeError, ArithmeticError, RecursionError),
    ) as error:
        raise WeightsError(
            f"{path}: it cannot be used ({error}); download it again, or correct it."
        ) from error
