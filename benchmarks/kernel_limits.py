"""Compiles each fused kernel for each kind of GPU: registers, spills, shared memory, loops.

    python benchmarks/kernel_limits.py --store     # writes benchmarks/kernel_limits.json
    python benchmarks/kernel_limits.py --gpu=l4    # one GPU of `targets`
    python benchmarks/kernel_limits.py --kernel="3x3 forward"    # one kernel

GPUs of one compute capability run the same machine code: of each, one is compiled for.
A program whose registers spill waits for memory in its loop; one that takes more shared memory than
the GPU has does not compile.  Requires what hlo_traffic.py requires (`ptxas` is part of it) and
`pip install nvidia-cuda-nvdisasm`, which shows the machine code, whose loops are counted.
"""

import argparse
import functools
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
FIGURES = HERE / "kernel_limits.json"
sys.path[:0] = [str(HERE.parent), str(HERE)]

# Widths and growth rates of DenseNet-121, DenseNet-161 and a network for CIFAR.
SIZES = ((128, 32), (192, 48), (48, 12))
WIDE = ((256, 64), (512, 128))  # further transitions
FOR_SEVERAL = ("1x1 backward pair", "1x1 backward near")  # where one kernel serves two layers


def calls(width: int, growth: int, like: Any) -> dict[str, tuple[Any, tuple, tuple[int, ...]]]:
    """Returns {kernel: (function, shapes of its arguments, numbers of the donated ones)}.

    Args:
      width, growth: maps after the first and second convolution of a layer.
      like: maps a shape and a type to what a function is lowered for.
    """
    import jax.numpy as jnp

    from densenet_jax.models.gpu import backward, backward_pooled, backward_stem, forward, stem

    image, rows, channels, c = (28, 28), 32 * 28 * 28, 512, 256

    def maps(n: int) -> Any:
        return like((rows, n), jnp.bfloat16)

    def numbers(*shape: int) -> Any:
        return like(shape, jnp.float32)

    def forward3x3(x: Any, gain: Any, shift: Any, w: Any, into: Any) -> Any:
        return forward.conv3x3(x, gain, shift, w, into, image=image, offset=c)

    def backward1x1(x: Any, d_source: Any, *readers: Any, start: int = 0) -> Any:
        return backward.conv1x1(x, readers, d_source, within=(start, c))

    def backward3x3(x: Any, gain: Any, shift: Any, w: Any, *rest: Any) -> Any:
        d_out, out, a, b = rest
        options = {"image": image, "offset": c}
        return backward.conv3x3(x, gain, shift, w, d_out, out, (a, b), **options)

    def backward_pooled1x1(x: Any, gain: Any, shift: Any, w: Any, *rest: Any) -> Any:
        d_out, out, a, b = rest
        return backward_pooled.conv1x1(x, gain, shift, w, d_out, out, (a, b), image=image)

    def backward_stem7x7(x: Any, gain: Any, shift: Any, *rest: Any) -> Any:
        y, where, d_out, a, b = rest
        return backward_stem.stem(x, y, gain, shift, where, d_out, (a, b))

    near1x1 = functools.partial(backward1x1, start=c - growth)
    buffers = maps(channels), maps(channels)
    first = maps(channels), numbers(c), numbers(c), numbers(c, width)
    second = maps(width), numbers(width), numbers(width), numbers(3, 3, width, growth)
    middle = maps(width), maps(width), numbers(width), numbers(width)
    reader = backward.Reader(*first[1:], *middle)
    last = maps(channels), maps(channels), numbers(growth), numbers(growth)
    read = 2 * width  # a transition's; it makes `width` maps
    pooled = maps(read), numbers(read), numbers(read), numbers(read, width)
    quarter = like((rows // 4, read), jnp.bfloat16)
    after = quarter, quarter, numbers(width), numbers(width)
    image_batch, made = like((32, 112, 112, 3), jnp.bfloat16), 2 * growth
    stem_maps = image_batch, numbers(made), numbers(made), numbers(7, 7, 3, made)
    convolved = like((32, 56, 56, made), jnp.bfloat16)
    windows = like((32, 28, 28, made), jnp.uint8), like((32, 28, 28, made), jnp.bfloat16)
    stem_maps_after = convolved, *windows, numbers(made), numbers(made)
    return {
        "7x7 pooled forward": (stem.stem, stem_maps, ()),
        "7x7 pooled backward": (backward_stem7x7, (*stem_maps[:3], *stem_maps_after), ()),
        "1x1 forward": (forward.conv1x1, first, ()),
        "3x3 forward": (forward3x3, (*second, maps(channels)), (4,)),
        "1x1 backward": (backward1x1, (*buffers, reader), (1,)),
        "1x1 backward pair": (backward1x1, (*buffers, reader, reader), (1,)),
        "1x1 backward near": (near1x1, (*buffers, reader), (1,)),
        "3x3 backward": (backward3x3, (*second, *last), ()),
        "1x1 pooled forward": (functools.partial(forward.conv1x1, image=image), pooled, ()),
        "1x1 pooled backward": (backward_pooled1x1, (*pooled, *after), ()),
    }


def measure(name: str, dump: str, only: str | None = None) -> dict[str, dict]:
    """Returns {kernel and sizes: what its tile takes} of a GPU, see `resources`.

    Args:
      name: in `targets.GPUS`.
      dump: the folder that XLA dumps into.
      only: one kernel; None: all.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec
    from targets import mesh

    from densenet_jax.models.gpu import tiles

    target, found = mesh(name), {}
    everywhere = NamedSharding(target, PartitionSpec())

    def like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    for sizes in SIZES + WIDE:
        for kernel, (function, arguments, donated) in calls(*sizes, like).items():
            if only not in (None, kernel):
                continue
            before = set(glob.glob(f"{dump}/*"))
            with tiles.compiling_for(target.devices.flat[0]):
                if kernel in FOR_SEVERAL and tiles.together(sizes[0]) == 1:
                    continue
                if sizes in WIDE and not kernel.startswith("1x1 pooled"):
                    continue
            with (
                jax.sharding.use_abstract_mesh(target.abstract_mesh),
                tiles.compiling_for(target.devices.flat[0]),
            ):
                tile = tiles.tile(kernel, *sizes)
                program = jax.jit(lambda *a, f=function: f(*a), donate_argnums=donated)
                program.lower(*arguments).compile()
            new = sorted(set(glob.glob(f"{dump}/*")) - before)
            row = {"tile": list(tile[:4]), **resources(new)}
            found[f"{kernel}, width {sizes[0]}, growth rate {sizes[1]}"] = row
            print(name, kernel, *sizes, row, flush=True)
    return found


def resources(files: list[str]) -> dict[str, int]:
    """Returns the registers, spilled bytes, shared memory and loop of a fused kernel.

    Args:
      files: what XLA has dumped of the module.
    """
    texts = {path: pathlib.Path(path).read_text(errors="replace") for path in files}
    ptx = next(p for p, text in texts.items() if re.search(r"\.entry _(?:conv|stem)\w*\(", text))
    arch = re.findall(r"\.target (\w+)", texts[ptx])[0]
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/kernel.cubin"
        said = run(tool("ptxas"), "-v", f"-arch={arch}", ptx, "-o", binary).stderr
        code = run(tool("nvdisasm"), "-c", binary).stdout
    launches = "".join(text for path, text in texts.items() if "thunk_sequence" in path)
    return {
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled_bytes": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "shared_bytes": max(map(int, re.findall(r"shared_memory: (\d+)", launches))),
        "loop_instructions": longest_loop(code),
    }


def longest_loop(code: str) -> int:
    """Returns the length of the loop with the most products; the shortest one, if several have.

    0 if the compiler has unrolled every loop.

    Args:
      code: as nvdisasm prints it.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for end, text in enumerate(instructions):
        jump = re.search(r"BRA.*?(\.L_x_\d+)", text)
        if jump and labels.get(jump[1], end) < end:
            body = instructions[labels[jump[1]] : end + 1]
            loops.append((sum("MMA" in i for i in body), -len(body)))
    return -max(loops)[1] if loops else 0


def tool(name: str) -> str:
    """Returns the path of one of NVIDIA's tools, installed by pip."""
    import nvidia

    found = [path for place in nvidia.__path__ for path in glob.glob(f"{place}/*/bin/{name}")]
    return found[0] if found else name


def run(*command: str) -> subprocess.CompletedProcess:
    """Returns what a program printed."""
    return subprocess.run(command, capture_output=True, text=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    from targets import GPUS, KERNELS_RUN_ON

    parser.add_argument("--gpu", choices=GPUS, help="one GPU; default: all")
    parser.add_argument("--kernel", help="one kernel; default: all")
    parser.add_argument("--store", action="store_true", help=f"write {FIGURES.name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as dump:
        # JAX 0.12 compiles each kernel by itself, and dumps its PTX only if it is asked for.
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_emitter_re=.*"
        os.environ["XLA_FLAGS"] = flags
        found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        kinds = {GPUS[name].capability: name for name in KERNELS_RUN_ON}
        for name in [args.gpu] if args.gpu else kinds.values():
            old = found.get(GPUS[name].capability, {}) if args.kernel else {}
            found[GPUS[name].capability] = old | measure(name, dump, args.kernel)
            if args.store:
                FIGURES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
