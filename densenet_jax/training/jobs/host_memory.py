"""Refuses batches that this machine's memory cannot hold, before anything is allocated.

Otherwise the system would end this process, or another one, without naming the cause.
"""

import contextlib
import pathlib
import sys

import jax
import ml_collections
import psutil

from densenet_jax.training.errors import ConfigError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BATCHES = 2  # batches of pixels that are held at the same time, at least
# The limits that a container may have, of both versions of control groups.
CONTROL_GROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def limit() -> int:
    """Returns the number of bytes of memory that this process can have at most."""
    limits = [psutil.virtual_memory().total]
    for path in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            limits.append(int(pathlib.Path(path).read_text()))
    if resource:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return min(limits)


def peak() -> int:
    """Returns the largest number of bytes of memory that this process has had so far."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_batches(config: ml_collections.ConfigDict, device: str, raw_side: int = 0) -> None:
    """Checks that the pixels of the configured batches fit into memory.

    Args:
      config: a complete configuration.
      device: "cpu", "gpu" or "tpu"; a CPU also holds the normalised images, as float32.
      raw_side: side of the data set's raw images in pixels; 0: it has others.

    Raises:
      ConfigError: they do not; the message has their size and the largest batch that fits.
    """
    data, most = config.data, limit()
    side = max([data.image_size, raw_side, *data.train_sizes])
    example = side**2 * data.channels * (BATCHES + 4 * (device == "cpu"))
    for key in ("batch_size", "eval_batch_size"):
        needed = config[key] // jax.process_count() * example
        if needed > most:
            raise ConfigError(
                f"config.{key}={config[key]} needs at least {needed / 2**30:,.0f} GiB of memory, "
                f"for images of {side}x{side}x{data.channels}, and this process can have "
                f"{most / 2**30:,.0f} GiB; it must be at most "
                f"{max(1, most // example) * jax.process_count()}."
            )
