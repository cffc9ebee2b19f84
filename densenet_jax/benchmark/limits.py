"""The roofline: how fast a machine could make a network's steps, if nothing were wasted.

A step can take no less time than its arithmetic, and no less than moving what must be moved.  Both
rates are measured on the machine itself, with a matrix product and a copy.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.models import summary
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.stem import find_stem


class Work(NamedTuple):
    """What an image costs at least: floating-point operations, and bytes of device memory moved."""

    flops: float
    bytes: float


class Rates(NamedTuple):
    """What a machine does in a second: floating-point operations, bytes read or written."""

    flops: float
    bytes: float


def images_per_second(work: Work, rates: Rates) -> float:
    """Returns the limit: arithmetic and memory both at their rate, one hidden behind the other."""
    return 1 / max(work.flops / rates.flops, work.bytes / rates.bytes)


def work(model: nn.Module, image_size: int) -> tuple[Work, Work]:
    """Returns the work of an image in inference and in training.

    A multiply-add is two operations, and the backward pass has two products for each of the
    forward pass.  Bytes: each feature map is read once by a kernel that needs it, and written once
    by the one that makes it, in the type of the computation; statistics, masks and normalisation
    come with these.  Parameters do not count.  For networks other than DenseNet bytes are 0: their
    limit is arithmetic alone.
    """
    flops = 2.0 * summary.count(model, image_size).multiply_adds
    forward = backward = 0
    if isinstance(model, DenseNet):
        forward, backward = _elements(model, image_size)
    size = jnp.dtype(model.dtype).itemsize
    return Work(flops, forward * size), Work(3 * flops, (forward + backward) * size)


def _elements(model: DenseNet, image_size: int) -> tuple[int, int]:
    """Returns how many elements inference moves for an image, and how many more training moves."""
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
    # In inference the stem can be one kernel.  In training a norm's statistics stand between what
    # a convolution writes and what reads it, and the norm's sums before the kernel's gradient.
    forward, backward = image + out, image + 4 * sum(maps) + (2 if maps else 1) * out
    for block in model.plan():
        for width in block.widths:
            # Back: the block's own gradient is read and written, to be added to.  A bottleneck is
            # read twice, since its norm's sums come first; its gradient need not leave the chip.
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


def measure_rates(dtype) -> Rates:
    """Measures a device's arithmetic, with matrix products in `dtype`, and its memory's copy rate.

    The best of several times: a limit is what the machine can do.  On a CPU all cores take part.
    """
    cpu = jax.default_backend() == "cpu"
    n = 2048 if cpu else 8192
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    x = jnp.ones(2**26 if cpu else 2**29, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    flops = 2 * n**3 / seconds(lambda: product(a), of=min)
    return Rates(flops, 2 * x.nbytes / seconds(lambda: copy(x), of=min))


def seconds(run: Callable, at_least: float = 2.0, of: Callable = statistics.median) -> float:
    """Returns the median time of a call, after one that does not count.

    Args:
      run: returns what the device computes.
      of: which of the times, if not their median.
      at_least: seconds to measure for, in rounds of as many calls as take a tenth of it.
    """
    jax.block_until_ready(run())
    times, calls, ends = [], 1, time.perf_counter() + at_least
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / calls)
        calls = max(1, round(at_least / 10 / times[0]))
    return of(times)
