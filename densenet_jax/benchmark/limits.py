"""The roofline of a network on a machine: an upper limit of images per second.

A step takes at least the time of its arithmetic, and at least the time to move its data between
memory and chip.  Both rates are measured on the machine itself, with a matrix product and a copy.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.models import summary
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.stem import find_stem


class Work(NamedTuple):
    """The least work for one image.

    Attributes:
      flops: floating-point operations.
      bytes: bytes read from and written to device memory.
    """

    flops: float
    bytes: float


class Rates(NamedTuple):
    """What a machine does in a second.

    Attributes:
      flops: floating-point operations per second.
      bytes: bytes per second, read or written.
    """

    flops: float
    bytes: float


def images_per_second(work: Work, rates: Rates) -> float:
    """Returns the limit of images per second if arithmetic and memory traffic fully overlap."""
    return 1 / max(work.flops / rates.flops, work.bytes / rates.bytes)


def work(model: nn.Module, image_size: int) -> tuple[Work, Work]:
    """Returns the work for an image in inference and in training.

    A multiply-add counts as two operations; the backward pass has two products for each product of
    the forward pass.  For bytes, each feature map counts as read once by each kernel that needs it
    and written once by the kernel that produces it, in the type of the computation; statistics,
    masks and normalisation are assumed to be part of these kernels.  Parameters are not counted.
    For networks other than DenseNet, bytes are 0 and arithmetic alone sets the limit.

    Args:
      model: a `DenseNet` or another network.
      image_size: height and width of an image in pixels.
    """
    flops = 2.0 * summary.count(model, image_size).multiply_adds
    forward = backward = 0
    if isinstance(model, DenseNet):
        forward, backward = _elements(model, image_size)
    size = jnp.dtype(model.dtype).itemsize
    return Work(flops, forward * size), Work(3 * flops, (forward + backward) * size)


def _elements(model: DenseNet, image_size: int) -> tuple[int, int]:
    """Returns the number of elements that inference moves, and the additional ones of training."""
    stem = find_stem(model.stem)
    side, features, maps = image_size, model.in_channels, []
    image = side**2 * features
    for _, stride, share in stem.convolutions:
        side, features = -(-side // stride), int(model.stem_features * share)
        maps.append(side**2 * features)
    if stem.pool is None:
        out = maps.pop()
    else:
        side = -(-side // 2)
        out = side**2 * features
    # In inference the stem can be one kernel.  In training it cannot: a norm's statistics must be
    # complete before the convolution's output is read, and the norm's gradient sums before the
    # kernel's gradient is computed.
    forward, backward = image + out, image + 4 * sum(maps) + (2 if maps else 1) * out
    for block in model.plan():
        for width in block.widths:
            # Backward: the gradient of the block's buffer is read and written, because each layer
            # adds to it.  A bottleneck is read twice, because its norm's sums are computed first;
            # its gradient can stay on the chip.
            new = block.growth_rate
            forward += side**2 * (width + 2 * block.bottleneck + new)
            backward += side**2 * (3 * width + 2 * block.bottleneck + 2 * new)
        features = block.out_features
        if block.kept is not None:
            whole = side**2 * features
            side, features = side // 2, block.kept
            forward += whole + side**2 * features
            backward += 2 * whole + side**2 * features
    return forward + side**2 * features, backward + 2 * side**2 * features


def measure_rates(dtype: Any, at_least: float = 1.0) -> Rates:
    """Measures a device's rates: arithmetic with matrix products in `dtype`, memory with copies.

    The shortest of several times counts, because a limit is the most that the machine can do.  On a
    CPU all cores take part.

    Args:
      dtype: of the matrices.
      at_least: seconds to measure for, for each of the two rates.
    """
    cpu = jax.default_backend() == "cpu"
    n = 2048 if cpu else 8192
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    x = jnp.ones(2**26 if cpu else 2**29, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    flops = 2 * n**3 / seconds(lambda: product(a), at_least, of=min)
    return Rates(flops, 2 * x.nbytes / seconds(lambda: copy(x), at_least, of=min))


def seconds(
    run: Callable[[], Any],
    at_least: float = 2.0,
    of: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Returns the median time of a call in seconds; the first call is not timed.

    Args:
      run: starts a computation and returns its result on the device.
      at_least: seconds to measure for, in rounds that each take about a tenth of it.
      of: reduces the list of times to one; the default is the median.
    """
    jax.block_until_ready(run())
    times: list[float] = []
    calls, ends = 1, time.perf_counter() + at_least
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / calls)
        calls = max(1, round(at_least / 10 / times[0]))
    return of(times)
