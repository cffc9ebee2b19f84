"""Counts what a DenseNet does on a GPU and predicts its time, from its compiled program alone.

    python benchmarks/hlo_traffic.py --model densenet121 --batch 256 --mode train
    python benchmarks/hlo_traffic.py --target=l4
    python benchmarks/hlo_traffic.py --check   # compares with benchmarks/hlo_traffic.json

XLA compiles for a described GPU (`targets`); none has to be present.  The optimised HLO lists the
kernels that would run, with the shapes they read and write.  The count is a model: a kernel reads
each operand once and writes each result once; a slice or an update in place counts only the
elements it touches; this project's own kernels declare their work in a scope
(`models.gpu.tools.work`).

The predicted time of a kernel is the longest of its bytes of device memory, and for the fused
kernels its bytes through L2, the instructions that its loops issue (`kernel_limits.json`) and its
products on the matrix units, each at full rate and each perfectly overlapped, and at least a
microsecond.  Autotuning and waiting within a kernel are not modelled, so the time is a bound from
below.  If a GPU is available, measure instead.

Requires `pip install "jax[cuda13]"`, JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and
LD_LIBRARY_PATH=<site-packages>/nvidia/cu13/lib; without the variables, the CUDA libraries look for
a driver.
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import targets  # noqa: E402
from targets import Gpu  # noqa: E402

LIMITS = HERE / "kernel_limits.json"
FIGURES = HERE / "hlo_traffic.json"
BANDWIDTH = 4.3e12  # measured copy rate of an H200 in bytes per second
SHARE = 0.9  # of the vendor's bandwidth; an H200 copies at 4.3 of 4.8 TB/s
L2 = 5.5e12 / (132 * 1.83e9)  # bytes that an H200's cache gives a processor in a cycle, estimated
LAUNCH = 1e-6  # seconds of the shortest kernel in a CUDA graph
TOLERANCE = 0.03  # relative growth that --check accepts
IMPLEMENTATIONS = ("gpu", "plain", "flax")

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b(pred|bf16|[suf](?:8|16|32|64)|c64|c128)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\([^=]*?\)|\S+) ([\w-]+)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
DECLARED = re.compile(r"(\dx\d_\w+?)_moves_(\d+)_bytes_(\d+)_cached_(\d+)_steps_(\d+)_operations")
ELEMENTWISE = ("bitcast", "convert", "add", "subtract", "multiply", "maximum", "minimum")
NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "optimization-barrier"),
    *("copy-done", "async-done", "all-reduce-done", "all-gather-done"),
}


@dataclasses.dataclass
class Instruction:
    """An HLO instruction.

    Attributes:
      name: of its result.
      opcode: such as "fusion".
      size: of its result in bytes.
      operands: names of its operands; of a parameter, its number.
      text: the whole line.
    """

    name: str
    opcode: str
    size: int
    operands: list[str]
    text: str


@dataclasses.dataclass
class Fused:
    """The work of a fused kernel, see `models.gpu.tools.work`; `memory` is the kernel's bytes."""

    kernel: str
    memory: int
    cached: int
    steps: int
    operations: int


@dataclasses.dataclass
class Traffic:
    """The bytes that a program moves.

    Attributes:
      kinds: bytes by kind of kernel.
      kernels: [(bytes, name), ...] of all kernels.
      fused: {name: what a fused kernel declares}.
    """

    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kernels: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    fused: dict[str, Fused] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """The bytes of all kernels."""
        return sum(self.kinds.values())

    def seconds(self, gpu: Gpu, loops: dict[str, float]) -> dict[str, dict[str, float]]:
        """Returns the predicted seconds by kind of kernel, {"memory", "l2", "issue", ..., "time"}.

        Args:
          gpu: the GPU.
          loops: {kernel: warp instructions of a step of its loop}; empty: not modelled.
        """
        found: dict[str, dict[str, float]] = collections.defaultdict(
            lambda: dict.fromkeys(("memory", "l2", "issue", "matrix", "time"), 0.0)
        )
        for size, name in self.kernels:
            parts = {"memory": size / (SHARE * gpu.bandwidth)}
            work = self.fused.get(name)
            if work:
                cycles = work.steps * loops.get(work.kernel, 0) / (4 * gpu.processors)
                parts["l2"] = work.cached / (L2 * gpu.processors * gpu.clock * 1e9)
                parts["issue"] = cycles / (gpu.clock * 1e9)
                parts["matrix"] = work.operations / gpu.tensor
            row = found[work.kernel.replace("_", " ") if work else "other"]
            for part, seconds in {**parts, "time": max(*parts.values(), LAUNCH)}.items():
                row[part] += seconds
        return dict(found)

    def summary(self, rows: int = 10) -> str:
        """Returns a table of the total, the largest kinds and the largest kernels.

        Args:
          rows: largest number of kinds, and of kernels.
        """
        milliseconds = self.total / BANDWIDTH * 1e3
        lines = [
            f"{self.total / 1e9:.2f} GB by {len(self.kernels)} kernels, "
            f"{milliseconds:.2f} ms at {BANDWIDTH / 1e12:.1f} TB/s"
        ]
        lines += [f"  {size / 1e9:8.3f} GB  {kind}" for kind, size in self.kinds.most_common(rows)]
        largest = sorted(self.kernels, reverse=True)[:rows]
        return "\n".join(lines + [f"  {size / 1e6:8.1f} MB  {name}" for size, name in largest])


def array_bytes(shape: str) -> int:
    """Returns the size in bytes of an HLO shape; for a tuple, the sum."""
    return sum(
        (BITS.get(dtype) or int(dtype[1:]))
        // 8
        * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, dims in ARRAY.findall(shape)
    )


def parse(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns {name of a computation: its instructions} and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry: str = ""
    body: list[Instruction] = []
    for line in hlo.splitlines():
        if header := COMPUTATION.match(line):
            body = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            arguments = _until_closed(rest)
            operands = re.findall(r"%([\w.-]+)", arguments)
            if opcode == "parameter":
                operands = [arguments]
            body.append(Instruction(name, opcode, array_bytes(shape), operands, line))
    return computations, entry


def _until_closed(text: str) -> str:
    """Returns the text before the parenthesis that closes one opened before the text."""
    depth = 1
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:i]
    return text


def fusion_bytes(sizes: list[int], size: int, body: list[Instruction]) -> int:
    """Returns the bytes that a fusion moves.

    Args:
      sizes: bytes of each operand.
      size: bytes of the result.
      body: the fused instructions.
    """
    users = collections.defaultdict(list)
    for instruction in body:
        for i, operand in enumerate(instruction.operands):
            users[operand].append((instruction, i))
    inner = {instruction.name: instruction for instruction in body}

    def uses(name: str, through: Collection[str]) -> Iterator[tuple[Instruction, int]]:
        """Yields (instruction, operand number) of each use, looking through some operations."""
        for user, i in users[name]:
            inner = user.opcode in through and users[user.name]
            yield from uses(user.name, through) if inner else [(user, i)]

    total = size
    for parameter in (i for i in body if i.opcode == "parameter"):
        full, used = sizes[int(parameter.operands[0])], list(uses(parameter.name, ("bitcast",)))
        parts = {user.name: user for user, _ in uses(parameter.name, ELEMENTWISE)}
        if parts and all(part.opcode in ("slice", "dynamic-slice") for part in parts.values()):
            total += min(full, sum(part.size for part in parts.values()))
        elif used and all(user.opcode == "dynamic-update-slice" and i == 0 for user, i in used):
            # An update in place writes only the update, not the whole result.
            total -= max(0, full - sum(inner[user.operands[1]].size for user, _ in used))
        else:
            total += full
    return max(total, 0)


def count(hlo: str) -> Traffic:
    """Returns the bytes that the kernels of an optimised HLO module read and write."""
    computations, entry = parse(hlo)
    traffic = Traffic()

    def visit(name: str) -> None:
        """Counts the kernels of a computation."""
        sizes = {instruction.name: instruction.size for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.opcode in NO_KERNEL or 'target="AllocateBuffer"' in instruction.text:
                continue
            called = CALLED.search(instruction.text)
            called = called[1] if called and called[1] in computations else None
            operands = [sizes.get(operand, 0) for operand in instruction.operands]
            if called and instruction.opcode in ("call", "while", "async-start"):
                visit(called)  # a loop's body counts once
                continue
            declared = DECLARED.search(instruction.text)
            if declared and instruction.opcode == "custom-call":
                work = Fused(declared[1], *map(int, declared.groups()[1:]))
                moved = work.memory
                traffic.fused[instruction.name] = work
            elif called and instruction.opcode == "fusion":
                moved = fusion_bytes(operands, instruction.size, computations[called])
            else:
                moved = sum(operands) + instruction.size
            target = re.search(r'custom_call_target="([^"]+)"', instruction.text)
            traffic.kinds[target[1] if target else re.sub(r"[._]\d+", "", instruction.name)] += (
                moved
            )
            traffic.kernels.append((moved, instruction.name))

    visit(entry)
    return traffic


def lower(
    model_name: str, batch: int, size: int, mode: str, implementation: str, target: str = "h200"
) -> Any:
    """Returns a lowered training step (bfloat16, SGD with Nesterov momentum) or inference.

    Args:
      model_name: see `densenet_jax.create_model`.
      batch, size: the images are [batch, size, size, 3].
      mode: "train" or "inference".
      implementation: see `densenet_jax.create_model`; "flax": the network as it is usually written
        in Flax (`plain_flax`).
      target: the GPU to compile for, of `targets.GPUS`.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    sys.path.insert(0, str(HERE.parent))
    import densenet_jax
    from densenet_jax.models.gpu import tiles
    from densenet_jax.tasks.classification import Classification
    from densenet_jax.tasks.losses import make_loss
    from densenet_jax.training.state import from_variables
    from densenet_jax.training.step import make_train_step

    mesh = targets.mesh(target)
    everywhere = NamedSharding(mesh, PartitionSpec())
    if implementation == "flax":
        from plain_flax import DenseNet

        blocks = densenet_jax.create_model(model_name).block_sizes
        model = DenseNet(blocks, dtype=jnp.bfloat16)
    else:
        model = densenet_jax.create_model(
            model_name, dtype=jnp.bfloat16, implementation=implementation
        )
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
    )
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.bfloat16)
    example = jnp.zeros((1, size, size, 3))
    state = jax.eval_shape(
        lambda: from_variables(model.init(jax.random.key(0), example), optimizer)
    )
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere),
        (state, {"image": images, "label": labels}),
    )
    program: Any = jax.jit(lambda state, batch: model.apply(state.variables, batch["image"]))
    if mode == "train":
        task = Classification()
        program = make_train_step(
            model,
            optimizer,
            lambda _: 0.1,
            lambda _, images, labels: (images, task.targets(labels, model.num_classes)),
            task=task,
            loss=make_loss("cross_entropy"),
        )
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        tiles.compiling_for(mesh.devices.flat[0]),
    ):
        return program.lower(*arguments)


def loop_instructions(target: str, width: int = 128, growth: int = 32) -> dict[str, float]:
    """Returns {kernel: warp instructions of all warps in a step}, from `kernel_limits.json`.

    Args:
      target: of `targets.GPUS`.
      width, growth: maps after the first and second convolution of a layer.
    """
    stored = json.loads(LIMITS.read_text()).get(targets.GPUS[target].capability, {})
    end = f", width {width}, growth rate {growth}"
    return {
        name.removesuffix(end).replace(" ", "_"): row["loop_instructions"] * row["tile"][2]
        for name, row in stored.items()
        if name.endswith(end) and "loop_instructions" in row
    }


def prediction(target: str, traffic: Traffic, batch: int) -> str:
    """Returns a table of predicted milliseconds, and the images per second that they allow.

    Args:
      target: of `targets.GPUS`.
      traffic: of a program for it.
      batch: images of the program.
    """
    found = traffic.seconds(targets.GPUS[target], loop_instructions(target))
    parts = ("memory", "l2", "issue", "matrix", "time")
    lines = [f"{'predicted ms':>14} " + " ".join(f"{part:>7}" for part in parts)]
    total = dict.fromkeys(parts, 0.0)
    for kind, row in found.items():
        lines.append(f"{kind:>14} " + " ".join(f"{1e3 * row[part]:7.2f}" for part in parts))
        total = {part: total[part] + row[part] for part in parts}
    lines.append(f"{'all':>14} " + " ".join(f"{1e3 * total[part]:7.2f}" for part in parts))
    return "\n".join([*lines, f"at most {batch / total['time']:,.0f} images/s"])


def measure(*case: Any) -> tuple[dict, Traffic]:
    """Compiles a case.

    Args:
      *case: the arguments of `lower`.

    Returns:
      ({"moved_bytes", "temporary_bytes", "kernels", "other_kernels", "other_bytes",
      "predicted_milliseconds", "lower_seconds", "compile_seconds"}, the traffic in detail).
    """
    start = time.perf_counter()
    lowered = lower(*case)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - traced
    traffic = count(compiled.as_text())
    target = case[5] if len(case) > 5 else "h200"
    gpu, loops = targets.GPUS[target], loop_instructions(target)
    figures = {
        "moved_bytes": traffic.total,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": len(traffic.kernels),
        "other_kernels": len(traffic.kernels) - len(traffic.fused),
        "other_bytes": traffic.total - sum(work.memory for work in traffic.fused.values()),
        "predicted_milliseconds": round(
            1e3 * sum(row["time"] for row in traffic.seconds(gpu, loops).values()), 2
        ),
        "lower_seconds": round(traced - start, 1),
        "compile_seconds": round(compile_seconds, 1),
    }
    return figures, traffic


def check(stored: dict, figures: dict) -> list[str]:
    """Returns a description of each figure that grew by more than the tolerance."""
    return [
        f"{key} grew from {stored[key]} to {figures[key]}"
        for key in ("moved_bytes", "temporary_bytes")
        if figures[key] > stored[key] * (1 + TOLERANCE)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="densenet121")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--mode", choices=("train", "inference"), default="train")
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, default="gpu")
    parser.add_argument("--store", action="store_true", help=f"write the figures to {FIGURES.name}")
    parser.add_argument("--check", action="store_true", help="fail if a stored figure grew by 3 %%")
    parser.add_argument("--target", choices=targets.GPUS, default="h200", help="default: h200")
    args = parser.parse_args()
    case = (args.model, args.batch, args.size, args.mode, args.implementation, args.target)
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    name = f"{args.model}, {args.size} pixels, batch {args.batch}, {args.mode}, {case[4]}"
    name += "" if args.target == "h200" else f", {args.target}"
    if args.check and name not in stored:
        parser.error(f"no figures are stored for this case; store them with --store: {name}")
    try:
        figures, traffic = measure(*case)
    except NotImplementedError as error:  # JAX without its CUDA plugin cannot describe a GPU
        parser.error(f'{error}: run pip install "jax[cuda13]"; see the top of this file.')
    print(f"{name}\n{traffic.summary()}\n{json.dumps(figures)}")
    print(prediction(args.target, traffic, args.batch))
    if args.store:
        # Seconds depend on the machine and the moment, so they are printed but not stored.
        stored[name] = {k: v for k, v in figures.items() if not k.endswith("_seconds")}
        FIGURES.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    grown = check(stored[name], figures) if args.check else []
    print("\n".join(grown), end="\n" if grown else "")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
