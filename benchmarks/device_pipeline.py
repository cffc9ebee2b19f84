"""Measures the input pipeline of data in memory: images per second, augmented and normalised.

    python benchmarks/device_pipeline.py [--data-dir=DIR] [--batch-size=512] [--rounds=5]

CIFAR-10's training images lie on the device.  As in a training step, one program gathers a batch
by its examples' numbers, flips, pads by 4 pixels, crops and normalises it; without a network here,
the float32 batch is the result.  Prints the median over the rounds.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from densenet_jax.data.augment import device
from densenet_jax.data.reading import pipeline
from densenet_jax.data.sources import by_name
from densenet_jax.training import mesh

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@jax.jit
def prepare(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns a batch's augmented and normalised images, float32 [B, 32, 32, 3]."""
    images = device.augment(key, batch["image"], pad=4, flip=True)
    return device.normalize(images, MEAN, STD, jnp.float32)


def rates(
    batches: Iterator[dict[str, jax.Array]], batch_size: int, seconds: float
) -> tuple[float, float]:
    """Returns images per second of wall-clock time, and per second of processor time."""
    key, images = jax.random.key(0), []
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        images.append(prepare(jax.random.fold_in(key, count), next(batches)))
        if len(images) == 4:  # a few batches may be in flight, as in training
            images.pop(0).block_until_ready()
        count += 1
    jax.block_until_ready(images)
    clock, cpu = time.perf_counter() - began, time.process_time() - cpu
    return count * batch_size / clock, count * batch_size / cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    held = pipeline.in_memory(by_name.load("cifar10", "train", args.data_dir), image_size=32)
    reader = pipeline.train_batches(
        held, batch_size=args.batch_size, image_size=32, random_crop=False
    )
    with pipeline.to_mesh(reader, mesh.batch_sharding(mesh.make_mesh())) as batches:
        rates(batches, args.batch_size, 0.5)  # compiles; not counted
        found = [rates(batches, args.batch_size, args.seconds) for _ in range(args.rounds)]
    clock, core = (statistics.median(values) for values in zip(*found, strict=True))
    print(f"{clock:,.0f} img/s, {core:,.0f} img/s per core, batches of {args.batch_size}")


if __name__ == "__main__":
    main()
