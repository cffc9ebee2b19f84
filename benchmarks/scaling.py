"""Predicts how a training step scales, from programs compiled for described machines.

    python benchmarks/scaling.py compile v5e:2x4 --groups=devices    # compiles and stores a case
    python benchmarks/scaling.py table                               # shows all stored cases
    python benchmarks/scaling.py plot docs/scaling.svg

XLA compiles the step for a described TPU slice or for 8 H200s (`h200.txtpb`).  The compiled program
has the memory of a device, its arithmetic, the bytes it moves and its collectives; `MACHINES` has
the rates.  The predicted time of a step is the longer of arithmetic and memory traffic, both at
full rate, plus all collectives one after the other, without overlap.  Both assumptions make the
efficiency look worse than it is: a real device computes more slowly and overlaps communication.

Requires `pip install "jax[tpu]"` for TPUs or `pip install "jax[cuda13]"` for H200s (see
hlo_traffic.py), but no accelerator.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).parent
FIGURES = HERE / "scaling.json"
sys.path[:0] = [str(HERE.parent), str(HERE)]

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
RANK = re.compile(r"\w+\[([\d,]*)\]")


class Machine(NamedTuple):
    """Rates of a device, from its vendor's data sheet, per second.

    Attributes:
      flops: bfloat16 operations.
      memory: bytes read from and written to its memory.
      link: bytes sent along one axis of the network, in one direction.
      hop: seconds that the smallest message takes from one device to the next.
      ring: smallest length of an axis of the network that is closed to a ring; 0: the network is a
        switch.
    """

    flops: float
    memory: float
    link: float
    hop: float
    ring: int


MACHINES = {
    # 4 links of 45 GB/s in each direction, two for each axis; about 1 us per hop ("How to Scale
    # Your Model", Austin et al., 2025).
    "v5e": Machine(197e12, 819e9, 45e9, 1e-6, 16),
    # NVLink 4: 450 GB/s in each direction through switches; 10 us for a small all-reduce (assumed).
    "h200": Machine(989e12, 4.8e12, 450e9, 5e-6, 0),
}


def all_reduce_seconds(machine: Machine, shape: tuple[int, ...], size: float) -> float:
    """Returns the seconds of an all-reduce on a torus or a switch.

    On a torus, the data are reduce-scattered along the axes one after the other, and all-gathered
    in reverse order.  The data are divided into as many parts as there are axes; all parts move at
    the same time, each with another order of axes.

    Args:
      machine: the rates.
      shape: number of devices along each axis; (n,) on a machine with a switch.
      size: bytes on each device.
    """
    if not machine.ring:  # a switch: each device sends to all others, once in each phase
        (n,) = shape
        return 2 * (machine.hop + size * (n - 1) / n / machine.link)
    axes = sorted(n for n in shape if n > 1)  # shortest first: the slowest order
    seconds, part = 0.0, size / max(len(axes), 1)
    for n in axes:
        # A closed ring sends in both directions, and the farthest device is half way round.
        directions, hops = (2, n // 2) if n >= machine.ring else (1, n - 1)
        seconds += 2 * (hops * machine.hop + part * (n - 1) / n / (machine.link * directions))
        part /= n
    return seconds


def collectives(hlo: str) -> dict[str, list[int]]:
    """Returns {kind: [number, bytes]} of the collectives in an optimised HLO module.

    The kind of an all-reduce is "gradients" if at least one of its arrays is a kernel, and
    "statistics" if all are vectors and scalars; other collectives go by their own name.
    """
    from hlo_traffic import array_bytes

    found: dict[str, list[int]] = {}
    for shape, name in COLLECTIVE.findall(hlo):
        # For a GPU, XLA joins the operands of an all-reduce to one vector; a vector longer than any
        # statistics must contain kernels.
        kernels = any("," in dims or int(dims or 0) > 2**16 for dims in RANK.findall(shape))
        kind = ("gradients" if kernels else "statistics") if name == "all-reduce" else name
        entry = found.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += array_bytes(shape)
    return found


def topology(name: str) -> tuple[str, tuple[int, ...], Any]:
    """Returns the machine's key in `MACHINES`, the shape of its network, and described devices.

    Args:
      name: such as "v5e:2x4" or "h200:8".
    """
    from jax.experimental import topologies

    kind, shape = name.split(":")
    if kind == "h200":
        described = (HERE / "h200.txtpb").read_text()
        devices = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{shape}", target_config=described
        ).devices
        return kind, (int(shape),), devices
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return kind, tuple(map(int, shape.split("x"))), devices


def network(kind: str, args: argparse.Namespace) -> Any:
    """Returns the model of a case with the implementation for this kind of machine."""
    import jax.numpy as jnp

    import densenet_jax

    fields = {"block_sizes": tuple(map(int, args.blocks.split(",")))} if args.blocks else {}
    implementation = "gpu" if kind == "h200" else "tpu"
    return densenet_jax.create_model(
        args.model, dtype=jnp.bfloat16, implementation=implementation, **fields
    )


def lower(devices: Any, model: Any, args: argparse.Namespace) -> Any:
    """Returns the lowered training step of a run on these devices."""
    import jax
    import jax.numpy as jnp
    import optax

    from densenet_jax.tasks.classification import Classification
    from densenet_jax.tasks.losses import make_loss
    from densenet_jax.training import groups, state, step
    from densenet_jax.training import mesh as meshes

    batch_size = args.batch * len(devices)
    group_size = args.batch if args.groups == "devices" else None
    plan = groups.plan(batch_size, len(devices), group_size, 1)
    mesh = groups.split_mesh(meshes.make_mesh(devices=devices), plan)
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
    )
    shape = (args.size, args.size, 3)
    start = jax.eval_shape(lambda: state.initial_state(model, optimizer, 0, shape))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *shape), jnp.bfloat16),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }

    def placed(tree: Any, sharding: Any) -> Any:
        """Returns the shapes of a tree with a sharding."""
        like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(like, tree)

    task = Classification()
    train_step = step.make_train_step(
        model,
        optimizer,
        lambda _: 0.1,
        lambda key, images, labels: (images, task.targets(labels, model.num_classes)),
        task=task,
        loss=make_loss("cross_entropy"),
        groups=plan,
    )
    with jax.set_mesh(mesh):
        return train_step.lower(
            placed(start, meshes.replicated(mesh)), placed(batch, meshes.batch_sharding(mesh))
        )


def compile_case(args: argparse.Namespace) -> dict:
    """Compiles a case and returns its figures as they are stored in scaling.json."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU metadata server to query
    from hlo_traffic import count

    from densenet_jax.models import summary

    began, cpu = time.monotonic(), time.process_time()
    kind, shape, devices = topology(args.topology)
    model = network(kind, args)
    lowered = lower(devices, model, args)
    print(f"lowered after {time.monotonic() - began:.0f} s", flush=True)
    # Most of a TPU compilation is the search of the scheduler and of the code generator.  The
    # figures counted here do not depend on it, so its effort is reduced.  For a GPU there is no
    # such option.
    reduced = args.effort and kind != "h200"
    options = {"exec_time_optimization_effort": args.effort} if reduced else None
    compiled = lowered.compile(compiler_options=options)
    text = compiled.as_text()
    if args.dump:
        pathlib.Path(args.dump).write_text(text)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    if cost is None:
        # A described GPU has no cost analysis: 2 operations for each multiply-add, forward and
        # twice as many backward.
        flops = 6 * args.batch * summary.count(model, args.size).multiply_adds
        cost = {"flops": float(flops), "bytes accessed": float(count(text).total)}
    return {
        "machine": kind,
        "shape": list(shape),
        "batch_of_a_device": args.batch,
        "groups": args.groups,
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": cost["flops"],
        "moved_bytes": cost["bytes accessed"],
        "collectives": collectives(text),
        "compile_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def predict(figures: dict, shape: tuple[int, ...] | None = None) -> tuple[float, float]:
    """Returns the seconds of a step that a device computes, and those that it communicates.

    Args:
      figures: of a case, from `compile_case`.
      shape: of the network; None: that of the case.  For another slice of the same machine with the
        same batch on each device, the program is the same apart from the groups of devices in its
        collectives.
    """
    machine = MACHINES[figures["machine"]]
    shape = tuple(shape or figures["shape"])
    work = max(figures["flops"] / machine.flops, figures["moved_bytes"] / machine.memory)
    talk = sum(
        number * all_reduce_seconds(machine, shape, size / number)
        for number, size in figures["collectives"].values()
    )
    return work, talk


def efficiency(figures: dict, shape: tuple[int, ...]) -> float:
    """Returns the predicted weak-scaling efficiency: the step's time on one device over all's."""
    work, talk = predict(figures, shape)
    return work / (work + talk)


def table(stored: dict) -> str:
    """Returns a Markdown table of the stored cases, {name: figures}."""
    lines = [
        "| case | GB per device | GFLOP | GB moved | all-reduces: statistics (kB) "
        "| gradients (MB) | step ms: work + links | img/s | efficiency |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in stored.items():
        work, talk = predict(case)
        devices = math.prod(case["shape"])
        statistics, gradients = (
            case["collectives"].get(kind, [0, 0]) for kind in ("statistics", "gradients")
        )
        memory = case["arguments_bytes"] + case["temporary_bytes"]
        rate = case["batch_of_a_device"] * devices / (work + talk)
        lines.append(
            f"| {name} | {memory / 1e9:.2f} | {case['flops'] / 1e9:.0f} "
            f"| {case['moved_bytes'] / 1e9:.2f} | {statistics[0]} ({statistics[1] / 1e3:.0f}) "
            f"| {gradients[0]} ({gradients[1] / 1e6:.1f}) | {work * 1e3:.2f} + {talk * 1e3:.2f} "
            f"| {rate:,.0f} | {work / (work + talk):.1%} |"
        )
    return "\n".join(lines)


def plot(stored: dict, path: str) -> None:
    """Draws the efficiency over the number of devices.

    Lines are predicted from the program of the largest slice, points from programs compiled for
    that number of devices.

    Args:
      stored: {name: figures} of the cases.
      path: of the picture.
    """
    import matplotlib.pyplot as plt

    slices = [(1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    x = [math.prod(shape) for shape in slices]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    labels = {"devices": "statistics of each device", "all": "statistics of the whole batch"}
    colours = {"devices": "C0", "all": "C1"}
    for case in stored.values():
        colour, devices = colours[case["groups"]], math.prod(case["shape"])
        if case["shape"] == [16, 16]:
            y = [100 * efficiency(case, shape) for shape in slices]
            axes.plot(x, y, color=colour, label=f"v5e, {labels[case['groups']]}")
        gpu = case["machine"] == "h200"
        axes.plot(
            devices,
            100 * efficiency(case, case["shape"]),
            "D" if gpu else "o",
            color=colour,
            markerfacecolor="none" if gpu else colour,
            label=f"8 H200s, {labels[case['groups']]}" if gpu else None,
        )
    axes.axhline(95, color="grey", linewidth=0.8, linestyle="--")
    axes.set(
        xscale="log",
        xlabel="devices, 32 images each (points: compiled for that many)",
        ylabel="predicted weak-scaling efficiency, %",
        ylim=(0, 102),
    )
    axes.set_xticks(x, list(map(str, x)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    case = commands.add_parser("compile", help="compile one case and store its figures")
    case.add_argument("topology", help="v5e:2x4 to v5e:16x16, or h200:8")
    case.add_argument("--model", default="densenet121")
    case.add_argument("--blocks", default="", help="layers of each block, for a smaller network")
    case.add_argument("--batch", type=int, default=32, help="images on each device")
    case.add_argument("--size", type=int, default=224, help="height and width in pixels")
    case.add_argument(
        "--groups",
        choices=("devices", "all"),
        default="devices",
        help="batch statistics of each device, or of the whole batch",
    )
    case.add_argument(
        "--effort", type=float, default=-1.0, help="effort of XLA for TPUs, -1 to 1; 0: default"
    )
    case.add_argument("--dump", default="", help="file for the optimised HLO")
    commands.add_parser("table", help="print all stored cases")
    commands.add_parser("plot", help="draw all stored cases").add_argument("path")
    args = parser.parse_args()
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if args.command == "plot":
        return plot(stored, args.path)
    if args.command == "compile":
        name = f"{args.topology}, {args.model}{' ' + args.blocks if args.blocks else ''}, "
        name += f"{args.batch} images a device, statistics of {args.groups}"
        figures = compile_case(args)
        print(json.dumps(figures))
        stored = {name: figures}
        # Read the file again, because another process may have stored a case in the meantime.
        if not args.blocks:
            everything = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
            FIGURES.write_text(json.dumps(everything | stored, indent=1, sort_keys=True) + "\n")
    print(table(stored))


if __name__ == "__main__":
    main()
