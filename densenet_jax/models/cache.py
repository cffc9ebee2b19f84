"""Where this package keeps what it found out about a machine, or built for it."""

import os
import pathlib


def cache_directory(part: str) -> pathlib.Path:
    """Returns a folder for one purpose: $XDG_CACHE_HOME or ~/.cache, then densenet_jax/PART."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(cache) / "densenet_jax" / part
