"""Measures how time and memory of a training step grow with depth, batch size and image size.

    python benchmarks/growth.py --vary=depth --device=gpu --batch=64     # runs both networks
    python benchmarks/growth.py --vary=batch --device=cpu --values=8,16
    python benchmarks/growth.py --vary=depth --device=counted --batch=32 # compiles for an H200
    python benchmarks/growth.py --plot=docs/growth.svg                   # draws the stored results

Compares this project with DenseNet as it is usually written in Flax (`plain_flax.py`).  Settings
that are not varied are DenseNet-121, --batch and --size.  The type is bfloat16, on a CPU float32.
`counted` needs no GPU: temporaries and bytes moved come from the compiled program (see
`hlo_traffic.py`).  --store adds the rows to benchmarks/results.md.
"""

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402
import hlo_traffic  # noqa: E402
import results  # noqa: E402

VALUES = {
    "depth": (121, 169, 201, 264),
    "batch": (8, 16, 32, 64, 128, 256),
    "size": (128, 160, 192, 224, 256, 320),
}
BLOCKS = {int(name.removeprefix("DenseNet-")): blocks for blocks, name in results.DEPTHS.items()}
CONTENDERS = ("densenet_jax", "flax")


def ran(case: dict, device: str, seconds: float) -> dict[str, tuple[float, float]]:
    """Returns each contender's measured milliseconds per step and temporaries in GB.

    Args:
      case: {"batch": images, "size": height and width, "blocks": layers of each block}.
      device: "cpu" or "gpu".
      seconds: about how long a contender runs in each round.
    """
    options = {
        **case,
        "mode": "train",
        "device": device,
        "dtype": "bfloat16" if device == "gpu" else "float32",
        "compile_mode": "default",
        "warm_up": 2 if device == "gpu" else 0,
    }
    pythons = dict.fromkeys(CONTENDERS, sys.executable)
    processes, facts = compare.start(CONTENDERS, pythons, options, cold=False, say=log)
    try:
        counts = {n: max(1, round(seconds / fact["step_seconds"])) for n, fact in facts.items()}
        times = compare.alternate(processes, counts, rounds=3, say=lambda _: None)
        return {
            name: (
                1e3 * min(times[name]),
                processes[name].ask(finish=True)["temporary_bytes"] / 1e9,
            )
            for name in times
        }
    finally:
        for process in processes.values():
            process.close()


def counted(depth: int, case: dict) -> dict[str, tuple[float, float]]:
    """Returns each contender's GB moved per step and temporaries in GB, from the compiled program.

    Args:
      depth: of the DenseNet, such as 121.
      case: {"batch": images, "size": height and width}.
    """
    found = {}
    for name, implementation in zip(CONTENDERS, ("gpu", "flax"), strict=True):
        settings = (f"densenet{depth}", case["batch"], case["size"], "train", implementation)
        figures, _ = hlo_traffic.measure(*settings)
        found[name] = (figures["moved_bytes"] / 1e9, figures["temporary_bytes"] / 1e9)
    return found


def log(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def rows(args: argparse.Namespace) -> Iterator[dict]:
    """Yields a record with one row for each value; `results.join` joins them to a table."""
    for value in args.values or VALUES[args.vary]:
        depth = value if args.vary == "depth" else 121
        case = {
            "batch": args.batch,
            "size": args.size,
            "blocks": list(args.blocks or BLOCKS[depth]),
        }
        if args.vary != "depth":
            case[args.vary] = value
        log(f"{args.vary} {value}")
        if args.device == "counted":
            found, unit, hardware = counted(depth, case), "GB moved", "an H200"
        else:
            found, unit, hardware = ran(case, args.device, args.seconds), "ms", args.device
        row: list = [str(value)]
        for name in CONTENDERS:
            row += found.get(name, ("failed", "failed"))
        ours, theirs = (found.get(name, (0, 0)) for name in CONTENDERS)
        row += [theirs[i] / ours[i] if ours[i] else "" for i in range(2)]
        fixed = {"depth": "DenseNet-121", "batch": f"batch {args.batch}", "size": f"{args.size} px"}
        others = ", ".join(text for name, text in fixed.items() if name != args.vary)
        yield {
            "kind": "scaling",
            "what": f"Growth of a training step with {args.vary}, on {hardware} ({others})",
            "hardware": hardware,
            "header": [
                args.vary,
                *(f"{results.LABELS[n]} {u}" for n in CONTENDERS for u in (unit, "temporaries GB")),
                f"ratio of {unit}",
                "ratio of temporaries",
            ],
            "rows": [row],
            "note": "Counted from the compiled program, nothing run"
            if args.device == "counted"
            else "Fastest of three rounds; temporaries as the compiler reports them",
            "date": datetime.date.today().isoformat(),
        }


def plot(records: list[dict], path: pathlib.Path) -> None:
    """Draws each stored table as a row: time (or bytes moved) on the left, memory on the right.

    Both axes start at 0, so that proportional growth is a straight line through the origin.

    Args:
      records: see `results`.
      path: of the SVG file.
    """
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "growth"  # makes the file the same for the same data
    records = [record for record in records if record["kind"] == "scaling"]
    figure, axes = plt.subplots(
        len(records), 2, figsize=(8, 2.8 * len(records)), layout="constrained", squeeze=False
    )
    for record, pair in zip(records, axes, strict=True):
        values = [float(row[0]) for row in record["rows"]]
        for column, axis in enumerate(pair):
            for i, name in enumerate(CONTENDERS):
                y = [row[1 + 2 * i + column] for row in record["rows"]]
                points = [(x, y) for x, y in zip(values, y, strict=True) if y != "failed"]
                axis.plot(*zip(*points, strict=True), marker="o", label=results.LABELS[name])
            unit = record["header"][1 + column].removeprefix(results.LABELS[CONTENDERS[0]] + " ")
            axis.set(xlabel=record["header"][0], ylabel=unit, xlim=(0, None), ylim=(0, None))
            axis.grid(alpha=0.3)
        pair[0].set_title(record["what"], loc="left", fontsize="medium")
        pair[1].legend()
    figure.savefig(path, metadata={"Date": None})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vary", choices=tuple(VALUES), default="depth")
    parser.add_argument("--values", type=compare.whole_numbers, metavar="N,...")
    parser.add_argument("--device", choices=("cpu", "gpu", "counted"), default="counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--blocks", type=compare.whole_numbers, help=argparse.SUPPRESS)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="approximate duration of a contender's turn"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    parser.add_argument(
        "--store", action="store_true", help="add the results to benchmarks/results.md"
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="draw the stored results and exit"
    )
    return parser


def main() -> int:
    args = parser().parse_args()
    if args.plot:
        plot(results.load(), args.plot)
        return 0
    if args.vary == "depth" and (unknown := set(args.values or ()) - set(BLOCKS)):
        parser().error(
            f"there is no depth {min(unknown)}; the depths are {', '.join(map(str, BLOCKS))}"
        )
    records: list[dict] = []
    for record in rows(args):
        records = results.join(records, [record])
        if args.output:  # written after each row, because the next one may fail
            args.output.write_text(json.dumps(records, indent=1) + "\n")
        if args.store:
            results.merge([record])
    print(results.generic(records[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
