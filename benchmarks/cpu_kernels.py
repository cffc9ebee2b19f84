"""Checks the CPU kernels without JAX: for other processors, and under the compilers' sanitizers.

    python benchmarks/cpu_kernels.py                            # as they are built here
    python benchmarks/cpu_kernels.py --target sse avx2 aarch64
    python benchmarks/cpu_kernels.py --sanitize address,undefined thread
    python benchmarks/cpu_kernels.py --products=bfloat16        # of the operands; on any processor
    python benchmarks/cpu_kernels.py --products=bfloat16 --target amx
    python benchmarks/cpu_kernels.py --network=densenet_bc_100_12 --batch=64 --seconds=1

Calls of every kernel are recorded with their results, as the library that is built here computes
them (tests/models/cpu compares it with plain JAX).  `cpu_kernels.cc` makes the same calls from a
program of its own, which is compiled for the target and runs under qemu (Debian: qemu-user,
g++-aarch64-linux-gnu) where this processor lacks its instructions; those of AMX are replaced by
others (emulated_amx.h), on a processor with AVX512-BF16.  Results may differ by 1e-4 of the largest
value; in bfloat16 by 2e-3, because an operand with another last bit may be rounded to another
bfloat16.  One more call asks for more memory than there is: it must end with an error.

--network records a training step and an inference of a network instead; --seconds measures the
processor time of each call, that of all threads, the least of the repetitions.
"""

import argparse
import functools
import itertools
import os
import pathlib
import platform
import struct
import subprocess
import sys
import tempfile
import threading
from typing import Any, BinaryIO

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import densenet_jax  # noqa: E402
from densenet_jax.models.cpu import building, library, stages, stem  # noqa: E402

EMULATED_AMX = ["-mamx-tile", "-mamx-bf16", "-include", str(HERE / "emulated_amx.h")]
# {target: (compiler, options, what runs the program elsewhere)}
TARGETS: dict[str, tuple[str, list[str], list[str]]] = {
    "native": ("c++", ["-march=native"], []),
    "sse": ("c++", ["-march=x86-64"], []),
    "avx2": ("c++", ["-march=x86-64-v3"], ["qemu-x86_64", "-cpu", "max"]),
    "avx512": ("c++", ["-march=x86-64-v4"], []),
    "amx": ("c++", ["-march=cooperlake", *EMULATED_AMX], []),
    "aarch64": (
        "aarch64-linux-gnu-g++",
        ["-march=armv8-a"],
        ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
    ),
}
SMALL = (
    # (network's fields, images)
    ({"stem": "imagenet", "stem_features": 20, "block_sizes": (2, 1), "growth_rate": 12}, (2, 37)),
    ({"stem": "cifar", "stem_features": 24, "block_sizes": (2, 2), "growth_rate": 12}, (3, 9)),
    ({"stem": "deep", "stem_features": 70, "block_sizes": (1, 2), "growth_rate": 33}, (1, 24)),
)


class Recorder:
    """Takes the place of `library.call`: a program writes each call and its results to a file.

    A call with packed kernels is written with the kernels, since processors pack differently.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.call, self.lock = file, library.call, threading.Lock()
        self.packed: list[tuple[Any, tuple]] = []  # packed kernels, and what they were

    def __call__(
        self, function, arrays, results, aliases=None, products="float32", **numbers
    ) -> list[jax.Array]:
        made = self.call(function, arrays, results, aliases, products, **numbers)
        if function == "Pack":
            self.packed.append((made[0], arrays))
            return made
        if function == "BlockEvaluate":
            *arrays, panels = arrays
            arrays += next(kernels for packed, kernels in self.packed if packed is panels)
        aliases = {f"alias{array}": result for array, result in (aliases or {}).items()}
        write = functools.partial(self._write, function, {**numbers, **aliases})
        jax.debug.callback(write, arrays, made)
        return made

    def _write(self, function: str, numbers: dict, arrays: Any, results: Any) -> None:
        with self.lock:
            self._text(function)
            self._integers(len(numbers))
            for name, number in sorted(numbers.items()):
                whole = isinstance(number, int)
                self._text(name)
                self.file.write(struct.pack("qq" if whole else "qd", whole, number))
            self._arrays(arrays)
            self._arrays(results)

    def _integers(self, *values: int) -> None:
        self.file.write(struct.pack(f"{len(values)}q", *values))

    def _text(self, text: str) -> None:
        self._integers(len(text))
        self.file.write(text.encode())

    def _arrays(self, arrays: Any) -> None:
        self._integers(len(arrays))
        for array in arrays:
            self._integers(array.ndim, *array.shape)
            self.file.write(np.asarray(array, np.float32).tobytes())


def record(path: pathlib.Path, network: str, batch: int, size: int, products: str) -> None:
    """Writes the calls of a network, or those of small ones and of single stages."""
    how = {"float32": "cpu", "bfloat16": "cpu_bfloat16"}[products]
    with path.open("wb") as file:
        recorder = Recorder(file)
        stages.call = stem.call = recorder
        if network:
            model = densenet_jax.create_model(network, num_classes=10, implementation=how)
            _network(model, batch, size)
        else:
            for fields, (images, side) in SMALL:
                fields = {**fields, "num_classes": 3, "implementation": how}
                model = densenet_jax.create_model("densenet121", **fields)
                _network(model, images, side)
            _stages(np.random.default_rng(0), stages.Stages(products))
        jax.effects_barrier()
        stages.call = stem.call = recorder.call


def _network(model: Any, batch: int, size: int) -> None:
    """Makes the calls of one training step and one inference."""
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch, size, size, 3))
    # Nothing is 0: where biases are, a gradient can cancel and has no digits to compare.
    shapes = jax.eval_shape(model.init, key, images[:1])
    drawn = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(drawn.normal(0.5, 0.3, leaf.shape), leaf.dtype), shapes
    )
    variables["params"] = jax.tree.map(  # kernels scaled, so that nothing overflows
        lambda leaf: (leaf - 0.5) * 3 / leaf[..., 0].size ** 0.5 if leaf.ndim > 1 else leaf,
        variables["params"],
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])

    def loss(params):
        variables_ = {**variables, "params": params}
        logits, _ = model.apply(variables_, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    jax.jit(jax.grad(loss))(variables["params"])
    jax.jit(model.apply)(variables, images)


def _stages(rng: np.random.Generator, stages: Any) -> None:
    """Makes the calls of single stages: those of blocks that several devices share."""
    image, buffer, c, d, growth = (2, 9, 11), 70, 52, 24, 9

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, dx, z, dz = draw(*image, buffer), draw(*image, buffer), draw(*image, d), draw(*image, d)
    narrow = (x, draw(c), draw(c), draw(1, 1, c, d))
    near = (z, draw(d), draw(d), draw(3, 3, d, growth))
    step = {"d_out": dz, "out": z, "correction": (draw(d), draw(d)), "d_source": dx}
    last = {"d_out": dx, "out": x, "correction": (draw(growth), draw(growth)), "offset": c}
    stages.forward(*narrow)
    stages.forward(*near, into=x, offset=c)
    stages.backward(*narrow, **step)
    stages.backward(*near, **last)


def compile_program(path: pathlib.Path, target: str, sanitize: str, products: str) -> list[str]:
    """Compiles the program for a target; returns the command that runs it."""
    compiler, options, emulator = TARGETS[target]
    options = [*building.OPTIONS, *building.PRODUCTS[products], *options]
    if sanitize:
        options += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g", "-O1"]
    sources = [HERE / "cpu_kernels.cc", *sorted(building.SOURCES.glob("*.cc"))]
    include = ["-isystem", jax.ffi.include_dir(), "-pthread"]
    command = [compiler, *options, *include, *map(str, sources), "-o", str(path)]
    subprocess.run(command, check=True)
    foreign = target == "aarch64" and platform.machine() != "aarch64"
    return [*(emulator if foreign or (target == "avx2" and not _has("avx2")) else []), str(path)]


def _has(instructions: str) -> bool:
    return f" {instructions} " in pathlib.Path("/proc/cpuinfo").read_text()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=["native"])
    parser.add_argument("--sanitize", nargs="+", default=[""], help="see -fsanitize of gcc")
    parser.add_argument("--products", choices=building.PRODUCTS, default="float32")
    parser.add_argument("--network", default="", help="record its calls, see list_models()")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0, help="to measure each call")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording, program = (pathlib.Path(folder) / name for name in ("calls", "program"))
        record(recording, args.network, args.batch, args.size, args.products)
        bound = {"float32": 1e-4, "bfloat16": 2e-3}[args.products]
        options = "allocator_may_return_null=1"
        environment = {**os.environ, "ASAN_OPTIONS": options, "TSAN_OPTIONS": options}
        failed = 0
        for target, sanitize in itertools.product(args.target, args.sanitize):
            print(f"== {target} {sanitize}", flush=True)
            command = compile_program(program, target, sanitize, args.products)
            command += map(str, (recording, args.threads, args.seconds, bound))
            failed += subprocess.run(command, env=environment, check=False).returncode != 0
        return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
