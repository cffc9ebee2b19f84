"""What a machine allows: the images a second of a DenseNet-BC that no implementation can exceed.

Two ceilings, the lower one counts: arithmetic (a gradient costs twice the forward pass), and
memory, if every BN-ReLU-convolution were one kernel that reads its inputs and writes its outputs
once, with batch statistics shared and one buffer for each block.
"""

import time
from collections.abc import Iterator


def _layers(blocks: tuple[int, ...], size: int, growth: int = 32) -> Iterator[tuple[int, int, int]]:
    """Yields (positions, channels in, channels out) of every bottleneck layer and transition.

    A transition has half its input's channels; a layer `growth`.
    """
    side, channels = size // 4, 2 * growth
    for i, depth in enumerate(blocks):
        for _ in range(depth):
            yield side * side, channels, growth
            channels += growth
        if i + 1 < len(blocks):
            yield side * side, channels, channels // 2
            side, channels = side // 2, channels // 2


def multiply_adds(blocks: tuple[int, ...], size: int = 224, classes: int = 1000) -> int:
    """Returns the multiply-adds of one image's forward pass, the growth rate being 32."""
    total = (size // 2) ** 2 * 7 * 7 * 3 * 64
    channels = 64
    for positions, inputs, outputs in _layers(blocks, size):
        if outputs == 32:
            total += positions * (inputs * 128 + 9 * 128 * 32)
            channels = inputs + 32
        else:
            total += positions * inputs * outputs
            channels = outputs
    return total + channels * classes


def moved_bytes(blocks: tuple[int, ...], size: int, train: bool, width: int) -> int:
    """Returns the bytes of activations that one image moves at least.

    Forward, a layer reads its inputs, writes and reads 128 maps, writes 32.  Backward it reads the
    gradient of 32 maps and the 128, writes and reads their gradient, and reads inputs and their
    gradient, which it writes.

    Args:
      width: bytes of a number.
    """
    numbers = 3 * size**2 + 64 * (size // 4) ** 2
    if train:
        numbers += 64 * (size // 2) ** 2 + 64 * (size // 4) ** 2
    for positions, inputs, outputs in _layers(blocks, size):
        if outputs == 32:
            numbers += positions * (inputs + 2 * 128 + 32)
            numbers += train * positions * (3 * inputs + 3 * 128 + 32)
        else:  # pooled by 2x2 before the product
            numbers += positions * inputs + positions * outputs // 4
            numbers += train * (2 * positions * inputs + positions * outputs // 4)
    return numbers * width


def images_per_second(
    blocks: tuple[int, ...], size: int, train: bool, width: int, machine: dict[str, float]
) -> float:
    """Returns the limit on a machine as `measure_machine` describes it."""
    arithmetic = machine["flops"] / (2 * multiply_adds(blocks, size) * (3 if train else 1))
    return min(arithmetic, machine["bandwidth"] / moved_bytes(blocks, size, train, width))


def measure_machine(dtype: str, on_gpu: bool) -> dict[str, float]:
    """Returns what JAX reaches on its first device: FLOP/s of a product, bytes/s of a copy."""
    import jax
    import jax.numpy as jnp

    def fastest(function, x):
        function(x).block_until_ready()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            function(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    n, count = (8192, 2**30) if on_gpu else (2048, 2**26)
    matrix = jax.random.normal(jax.random.key(0), (n, n), dtype)
    vector = jnp.zeros(count, dtype)
    product = fastest(jax.jit(lambda a: a @ a), matrix)
    copy = fastest(jax.jit(lambda a: a + 1), vector)
    return {"flops": 2 * n**3 / product, "bandwidth": 2 * vector.nbytes / copy}
