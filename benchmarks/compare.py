"""DenseNet side by side with its peers on this machine: images a second, memory, compile time.

    python benchmarks/compare.py --mode=train --batch=16 --torch-python=PATH --keras-python=PATH
    python benchmarks/compare.py --device=gpu --batch=256 --mode=inference --store

Contenders: densenet_jax; `flax`, the network as it is usually written in Flax (`plain_flax.py`);
torchvision's eager (`torch`) and through `torch.compile` (`torch_compile`), channels last, on a GPU
with automatic mixed precision in bfloat16; Keras applications on the JAX backend (`keras`).

Each is a process of its own (`worker.py`), in its own interpreter if need be, and holds one batch
of noise on its device.  They take turns, one at work at a time, a round for each; medians are
printed, and ratios of the same round, since a machine's speed changes from minute to minute.  A
contender that cannot start is named and left out.  --store adds the figures to results.json and
writes results.md and the chart in docs/ again.  `densenet_jax_plain` (only when asked for) is this
project without its fused kernels.

Memory: on a CPU the process's peak while it runs (interpreter and libraries included), on a GPU the
allocator's.  Compile time: until the first step is made, less a step; torch.compile finds its cache
of earlier runs unless --cold.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import results  # noqa: E402

PEERS = ("densenet_jax", "flax", "torch_compile", "torch", "keras")
NAMES = (*PEERS, "densenet_jax_plain")


class ContenderError(Exception):
    """A contender's process ended; the message is what it said last."""


class Process:
    """A contender at the other end of a pipe."""

    def __init__(self, name: str, python: str, options: dict, cold: bool):
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment["JAX_PLATFORMS"] = "cuda" if options["device"] == "gpu" else "cpu"
        if cold:
            environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), name, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = [line for line in self.log.read().splitlines() if line.strip()]
            raise ContenderError(said[-1].strip() if said else f"exit {self.process.returncode}")
        return json.loads(line)

    def ask(self, **command) -> dict:
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` finds out why
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def start(names, pythons: dict, options: dict, cold: bool, say=print) -> tuple[dict, dict]:
    """Starts contenders one after the other; returns processes and what they said of themselves."""
    processes, facts = {}, {}
    for name in names:
        try:
            process = Process(name, pythons[name], options, cold)
        except OSError as error:
            say(f"{name}: left out, {error}")
            continue
        try:
            facts[name], processes[name] = process.answer(), process
            say(f"{name}: ready, compiled in {facts[name]['compile_seconds']:.1f} s")
        except ContenderError as error:
            process.close()
            say(f"{name}: left out, {error}")
    return processes, facts


def alternate(processes: dict, counts: dict, rounds: int, say=print) -> dict[str, list[float]]:
    """Returns each contender's seconds a step, one figure a round; drops those that fail."""
    seconds = {name: [] for name in processes}
    for i in range(rounds):
        # Every other round backwards: who works after whom is then not always the same.
        for name in list(seconds)[:: -1 if i % 2 else 1]:
            try:
                run = processes[name].ask(run=counts[name])
                seconds[name].append(run["seconds"] / counts[name])
            except ContenderError as error:
                say(f"{name}: left out, {error}")
                del seconds[name]
        say(f"round {i + 1} of {rounds} done")
    return seconds


def summarise(seconds: dict[str, list[float]], batch: int, base: str) -> dict[str, dict]:
    """Returns medians of images a second, and how many times as fast as each the base is."""
    figures = {}
    for name, times in seconds.items():
        figures[name] = {
            "images_per_second": batch / statistics.median(times),
            "seconds_per_step": times,
        }
        if base in seconds and name != base:
            ratios = [other / own for other, own in zip(times, seconds[base], strict=True)]
            figures[name]["base_is_faster"] = [
                statistics.median(ratios),
                min(ratios),
                max(ratios),
            ]
    return figures


def measure(args: argparse.Namespace, say=print) -> dict:
    """Runs the comparison; returns the record that `results.py` stores and shows."""
    dtype = args.dtype or ("bfloat16" if args.device == "gpu" else "float32")
    options = {
        "mode": args.mode,
        "batch": args.batch,
        "size": args.size,
        "blocks": list(args.blocks),
        "dtype": dtype,
        "device": args.device,
        "compile_mode": args.compile_mode,
        "warm_up": 2 if args.device == "gpu" else 0,
    }
    pythons = dict.fromkeys(NAMES, sys.executable)
    pythons.update(torch=args.torch_python, torch_compile=args.torch_python)
    pythons["keras"] = args.keras_python
    processes, facts = start(args.contenders, pythons, options, args.cold, say)
    try:
        machine = None
        if "densenet_jax" in processes:
            machine = processes["densenet_jax"].ask(machine=True)
        counts = {
            name: max(1, round(args.seconds / fact["step_seconds"])) for name, fact in facts.items()
        }
        seconds = alternate(processes, counts, args.rounds, say)
        figures = summarise(seconds, args.batch, "densenet_jax")
        for name in figures:
            figures[name].update(facts[name], **processes[name].ask(finish=True))
    finally:
        for process in processes.values():
            process.close()
    record = {
        "kind": "comparison",
        **{key: options[key] for key in ("device", "mode", "batch", "size", "dtype", "blocks")},
        "hardware": next(iter(facts.values()))["device"] if facts else "",
        "host": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
        "cold": args.cold,
        "contenders": figures,
    }
    if machine:
        record.update(limit=machine.pop("limit"), machine=machine)
    return record


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def names(text: str) -> list[str]:
    chosen = text.split(",")
    for name in set(chosen) - set(NAMES):
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(NAMES)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=("train", "inference"), default="train")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--blocks", type=whole_numbers, default=(6, 12, 24, 16), metavar="N,N,N,N")
    parser.add_argument("--contenders", type=names, default=list(PEERS), metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a contender's turn, about")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch and torchvision")
    parser.add_argument("--keras-python", default=sys.executable, help="has keras and jax")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile")
    parser.add_argument("--cold", action="store_true", help="torch.compile without its cache")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    parser.add_argument("--store", action="store_true", help="keep them in benchmarks/results.md")
    return parser


def main() -> int:
    args = parser().parse_args()
    record = measure(args, say=lambda text: print(text, file=sys.stderr, flush=True))
    if not record["contenders"]:
        print("No contender could be run.", file=sys.stderr)
        return 1
    print(results.comparison(record))
    if args.output:
        args.output.write_text(json.dumps([record], indent=1) + "\n")
    if args.store:
        results.merge([record])
    return 0


if __name__ == "__main__":
    sys.exit(main())
