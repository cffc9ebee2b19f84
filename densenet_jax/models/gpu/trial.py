"""The first use of the kernels on a kind of GPU: each is compiled and compared with plain JAX.

Kernels that do not compile, or that compute something else, are replaced by plain JAX, and the rest
is timed against plain JAX.  The verdict is kept in the user's cache directory, under a name made of
all it depends on: GPU, driver, JAX, the kernels' source and the sizes of a layer.
"""

import functools
import hashlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.models.block import gradient, plain
from densenet_jax.models.block.statistics import moments
from densenet_jax.models.gpu import tiles
from densenet_jax.models.gpu.backward_pooled import WIDEST
from densenet_jax.models.gpu.stages import KERNELS, Stages
from densenet_jax.models.pooling import maxima
from densenet_jax.user_cache import user_cache

# (batch, height, width), channels of the buffer, channels read: one that no tile divides, so that
# rows and channels are masked and addresses are not aligned, and one that tiles divide.
SHAPES = (((3, 9, 11), 80, 52), ((2, 8, 16), 192, 128))
# Largest accepted difference, relative to the largest value of the plain result: kernels and plain
# operations round to 16 bits at different places.
BOUND = 2e-2
LARGEST_FILE = 2**16  # bytes; a verdict has about 500
WAIT = 600_000  # milliseconds in which process 0 of a job has its verdict

logger = logging.getLogger(__name__)
# {(dtype, width, growth): the verdict} of what this process has used so far; see `verdict`.
VERDICTS: dict[tuple[str, int, int], "Verdict"] = {}


class Verdict(NamedTuple):
    """What a trial found.

    Attributes:
      faults: {kernel: why plain JAX replaces it}, the kernels being those of `KERNELS`.
      seconds: {"gpu", "plain"}: of the gradient of a small block, with the kernels that work and in
        plain JAX; empty if none works.
    """

    faults: dict[str, str]
    seconds: dict[str, float]

    @property
    def faster(self) -> bool:
        """Whether the kernels that work are faster than plain JAX."""
        return bool(self.seconds) and self.seconds["gpu"] < self.seconds["plain"]


def verdict(dtype: str, width: int, growth: int) -> Verdict:
    """Returns the verdict on this process's GPUs; says once which kernels are replaced, and why.

    All processes of a job take the verdict of process 0, because they run the same programs.

    Args:
      dtype: name of the type of the feature maps.
      width, growth: number of maps after the first and after the second convolution of a layer.
    """
    sizes = dtype, width, growth
    if sizes in VERDICTS:
        return VERDICTS[sizes]
    key = _key(*sizes)
    if jax.process_count() == 1:
        found = _kept_or_new(key, *sizes)
    else:
        # The coordinator's key-value store: unlike a collective, no process has to take part.
        from jax._src.distributed import global_state

        client: Any = global_state.client
        name = f"densenet_jax/kernels/{key}"
        if jax.process_index() == 0:
            found = _kept_or_new(key, *sizes)
            client.key_value_set(name, json.dumps(found._asdict()), allow_overwrite=True)
        else:
            found = _parse(client.blocking_key_value_get(name, WAIT)) or Verdict({}, {})
    if found.faults and jax.process_index() == 0:
        logger.warning(
            "On %s plain JAX replaces fused kernels (%s, width %d, growth rate %d): %s",
            jax.local_devices()[0].device_kind,
            dtype,
            width,
            growth,
            "; ".join(f"{kernel}: {why}" for kernel, why in found.faults.items()),
        )
    VERDICTS[sizes] = found
    return found


def _key(*sizes: Any) -> str:
    """Returns a hash of all that a verdict depends on."""
    device = jax.devices()[0]
    try:
        driver = pathlib.Path("/sys/module/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        driver = ""
    here = pathlib.Path(__file__).parent
    sources = [*here.glob("*.py"), *(here.parent / "block").glob("*.py")]
    versions = (jax.__version__, jaxlib.__version__, driver, device.client.platform_version)
    text = [str(part) for part in (device.device_kind, *versions, *sizes)]
    text += [path.read_text(encoding="utf-8") for path in sorted(sources)]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]


def _kept_or_new(key: str, *sizes: Any) -> Verdict:
    path = pathlib.Path(user_cache()) / "gpu" / f"{key}.json"
    if found := read(path):
        return found
    # A thread of its own has no trace and no mesh: the caller may be inside `jax.jit`.
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(examine, Stages(), *sizes).result()
    # A GPU whose memory was full at the time says nothing of the next time.
    complete = found.seconds or len(found.faults) == len(KERNELS)
    if complete and not any("out of memory" in why.lower() for why in found.faults.values()):
        write(path, found)
    return found


def read(path: pathlib.Path) -> Verdict | None:
    """Returns the verdict in a file; None if there is none, or a damaged one."""
    try:
        with open(path, encoding="utf-8") as file:
            return _parse(file.read(LARGEST_FILE))
    except (OSError, UnicodeDecodeError):
        return None


def _parse(text: str) -> Verdict | None:
    try:
        found = json.loads(text)
        faults, seconds = dict(found["faults"]), dict(found["seconds"])
        sound = all(kernel in KERNELS and isinstance(why, str) for kernel, why in faults.items())
        sound &= seconds.keys() in (set(), {"gpu", "plain"})
        sound &= all(math.isfinite(s) and s > 0 for s in seconds.values())
        return Verdict(faults, seconds) if sound else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def write(path: pathlib.Path, found: Verdict) -> None:
    """Writes a verdict; where that is impossible, the next process tries the kernels again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = {"device": jax.devices()[0].device_kind, **found._asdict()}
        atomic_files.write(path, json.dumps(record, indent=1))
    except OSError as error:
        logger.info("The verdict on the GPU kernels cannot be kept: %s", error)


def examine(stages: Stages, dtype: str, width: int, growth: int) -> Verdict:
    """Compares every kernel with plain JAX, and times those that work.

    Args:
      stages: the kernels.
      dtype, width, growth: see `verdict`.
    """
    faults: dict[str, str] = {}
    for shape in SHAPES:
        for case in cases(*shape, width, growth, dtype):
            if case.kernel not in faults and (why := _fault(stages, case)):
                faults[case.kernel] = why
    seconds: dict[str, float] = {}
    if len(faults) < len(KERNELS):
        for name in (stages.without(faults), "plain"):
            try:
                seconds["plain" if name == "plain" else "gpu"] = _seconds(
                    name, dtype, width, growth
                )
            except Exception as error:
                logger.info("%s cannot be timed: %s", name, error)
                return Verdict(faults, {})
    return Verdict(faults, seconds)


class Case(NamedTuple):
    """A call of a kernel: the name and arguments of a function of `plain`."""

    kernel: str
    function: str
    arguments: tuple
    arrays: dict[str, Any]
    static: dict[str, Any]

    def difference(self, stages: Any) -> float:
        """Returns the largest difference from plain JAX, relative to the largest expected value.

        Infinity if a result is not finite.

        Args:
          stages: has the functions of `plain`.
        """

        def run(where: Any) -> Any:
            function = functools.partial(getattr(where, self.function), **self.static)
            call = jax.jit(lambda arguments, arrays: function(*arguments, **arrays))
            return jax.tree.leaves(call(self.arguments, self.arrays))

        return max(map(_difference, run(stages), run(plain)))


def _difference(actual: jax.Array, expected: jax.Array) -> float:
    wanted = np.asarray(expected, np.float32)
    found = np.asarray(actual, np.float32).reshape(wanted.shape)
    worst = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return worst if math.isfinite(worst) else math.inf


def _fault(stages: Stages, case: Case) -> str:
    """Returns what is wrong with a kernel, in words; "" if nothing is."""
    try:
        worst = case.difference(stages)
    except Exception as error:  # whatever compilers and drivers raise
        text = str(error).strip() or type(error).__name__
        return f"it does not run ({text.splitlines()[0][:200]})"
    return "" if worst <= BOUND else f"its result differs by {worst:.2g} of the largest value"


def cases(
    image: tuple[int, int, int], channels: int, c: int, width: int, growth: int, dtype: Any
) -> Iterator[Case]:
    """Yields a call of each kernel, with random numbers.

    Args:
      image: (batch, height, width).
      channels: of the block's buffer; c + growth at least.
      c: channels that the layer reads.
      width, growth, dtype: see `verdict`.
    """
    rng = np.random.default_rng(0)

    def maps(n: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*image, n)), dtype)

    def vectors(n: int) -> tuple[jax.Array, jax.Array]:
        first, second = (jnp.asarray(rng.normal(size=n), jnp.float32) for _ in range(2))
        return first, second

    def kernel(k: int, a: int, b: int) -> jax.Array:
        values = rng.normal(0, np.sqrt(2 / (k * k * a)), (k, k, a, b))
        return jnp.asarray(values, jnp.float32)

    channels = max(channels, c + growth)
    x, dx, z, dz = maps(channels), maps(channels), maps(width), maps(width)
    first, second = (*vectors(c), kernel(1, c, width)), (*vectors(width), kernel(3, width, growth))
    arrays: dict[str, Any] = {"expected": vectors(c)[0]}
    yield Case("1x1 forward", "forward", (x, *first), arrays, {})
    arrays = {"into": x}
    yield Case("3x3 forward", "forward", (z, *second), arrays, {"offset": c})
    arrays = {"d_out": dz, "out": z, "correction": vectors(width), "d_source": dx}
    yield Case("1x1 backward", "backward", (x, *first), arrays, {})
    step = {name: value for name, value in arrays.items() if name != "d_source"}
    reader = (*first, step)
    if tiles.together(width) > 1:
        for readers, start in (([reader] * 2, 0), ([reader], c - growth)):
            within = {"within": (start, c)}
            yield Case("1x1 backward", "backward_together", (x, readers, dx), {}, within)
    arrays = {"d_out": dx, "out": x, "correction": vectors(growth)}
    yield Case("3x3 backward", "backward", (z, *second), arrays, {"offset": c})
    # Outputs of the transitions of DenseNet-121 are one, two and four times as wide.
    made = width if c % 32 else min(4 * width, WIDEST)
    image = image[0], image[1] // 2, image[2] // 2
    pooled = x, *vectors(channels), kernel(1, channels, made)
    yield Case("1x1 pooled forward", "forward", pooled, {}, {"pool": True})
    arrays = {"d_out": maps(made), "out": maps(made), "correction": vectors(made)}
    yield Case("1x1 pooled backward", "backward", pooled, arrays, {"pool": True})
    made = 2 * growth
    image = image[0], 4 * image[1] + 1, 4 * image[2] - 1  # whose pooled maps have several lines
    x, normalisation, w = maps(3), vectors(made), kernel(7, 3, made)
    yield Case("7x7 pooled forward", "stem", (x, *normalisation, w), {}, {})
    y = plain.convolve(x, w, 2)
    out, (where, _) = maxima(y, *normalisation, "relu")
    d_out = jnp.asarray(rng.normal(size=out.shape), dtype)
    gradients = x, y, *normalisation, where, d_out, vectors(made)
    yield Case("7x7 pooled backward", "stem_gradient", gradients, {}, {})


def _seconds(implementation: str, dtype: str, width: int, growth: int) -> float:
    """Returns how long the gradient of a block of two layers takes."""
    settings = gradient.Settings(1e-5, 0.0, implementation)
    x = jax.random.normal(jax.random.key(0), (32, 28, 28, 256)).astype(dtype)
    layers = [layer(256 + i * growth, width, growth) for i in range(2)]

    def loss(x: jax.Array, layers: list) -> jax.Array:
        features, *_ = gradient.block(x, moments(x), layers, None, settings)
        return jnp.square(features.astype(jnp.float32)).mean()

    step: Callable = jax.jit(jax.grad(loss, (0, 1)))
    jax.block_until_ready(step(x, layers))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10):
            result = step(x, layers)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / 10)
    return min(times)


def layer(c: int, width: int, growth: int) -> list:
    """Returns a layer that reads c channels, as `dense_block.train` takes it."""
    norms = [{"scale": jnp.ones(n), "bias": jnp.zeros(n)} for n in (c, width)]
    kernels = jnp.full((1, 1, c, width), 0.01), jnp.full((3, 3, width, growth), 0.01)
    return list(zip(norms, kernels, strict=True))
