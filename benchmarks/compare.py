"""Compares DenseNet implementations on this machine: images per second, memory, compile time.

    python benchmarks/compare.py --mode=train --batch=16 --torch-python=PATH --keras-python=PATH
    python benchmarks/compare.py --mode=inference --batch=1 --engine-python=PATH [--dtype=int8]
    python benchmarks/compare.py --device=gpu --batch=256 --mode=inference --store

Contenders: `densenet_jax`; `flax`, the network as it is usually written in Flax (`plain_flax.py`);
torchvision's network in eager mode (`torch`) and with `torch.compile` (`torch_compile`), channels
last, with automatic mixed precision unless float32; Keras applications on the JAX backend
(`keras`); in inference on a CPU ONNX Runtime (`onnxruntime`) and OpenVINO with its two hints
(`openvino`: latency, `openvino_throughput`) on this project's ONNX files.  The table says by how
much logits differ from those of `densenet_jax`, relative to the largest, for those that have its
weights.  Only on request: `densenet_jax_callers`, called by a thread for each core, as OpenVINO's
throughput mode works; `densenet_jax_plain`, without its fused kernels.  With
--dtype=int8 the engines run the file of `export --format=onnx --int8`, this project float32.

Each contender is a process of its own (`worker.py`), with its own interpreter if necessary, and
keeps one batch of noise on its device.  In each round every contender runs once, while the others
wait.  The tables have medians over the rounds, and ratios within the same round, because a
machine's speed changes from minute to minute.  A contender that cannot start is named and left out.
--store adds the results to results.json and rewrites results.md and the chart in docs/.

Memory is, on a CPU, the process's peak during the steps (including interpreter and libraries) and,
on a GPU, the allocator's peak.  Compile time lasts from the start to the end of the first step,
minus the time of a step; torch.compile uses its cache of earlier runs unless --cold is given.
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
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import results  # noqa: E402

PEERS = ("densenet_jax", "flax", "torch_compile", "torch", "keras")
ENGINES = ("onnxruntime", "openvino", "openvino_throughput")
NAMES = (*PEERS, *ENGINES, "densenet_jax_callers", "densenet_jax_plain")
LATENCIES = 100  # of a batch of one image, for its percentiles

Say = Callable[[str], None]


class ContenderError(Exception):
    """A contender's process ended; the message is the last line that it printed."""


class Process:
    """A contender's process, connected by pipes; see `worker` for the protocol.

    Args:
      name: of the contender.
      python: path of its interpreter.
      options: for the contender, see `contenders.Contender`'s makers.
      cold: whether torch.compile ignores its cache.
    """

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
        """Returns the next answer.

        Raises:
          ContenderError: the process ended.
        """
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = [line for line in self.log.read().splitlines() if line.strip()]
            raise ContenderError(said[-1].strip() if said else f"exit {self.process.returncode}")
        return json.loads(line)

    def ask(self, **command: Any) -> dict:
        """Sends a command and returns the answer.

        Raises:
          ContenderError: the process ended.
        """
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` reports the reason
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def start(
    names: Iterable[str], pythons: dict[str, str], options: dict, cold: bool, say: Say = print
) -> tuple[dict[str, Process], dict[str, dict]]:
    """Starts contenders one after the other; those that fail are reported and left out.

    Args:
      names: of the contenders.
      pythons: {name: path of the interpreter}.
      options: for all contenders.
      cold: whether torch.compile ignores its cache.
      say: reports progress.

    Returns:
      ({name: process}, {name: the process's first answer, see `worker`}).
    """
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


def alternate(
    processes: dict[str, Process],
    counts: dict[str, int],
    rounds: int,
    say: Say = print,
    batches: dict[str, int] | None = None,
) -> dict[str, list[float]]:
    """Returns each contender's seconds per batch, one number for each round.

    Contenders that fail are reported and left out.

    Args:
      processes: by name.
      counts: {name: steps in a round}.
      rounds: number of rounds.
      say: reports progress.
      batches: {name: batches of a step}; not given: one.
    """
    batches = batches or {}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for i in range(rounds):
        # Every second round is in reverse order, so that a contender's predecessor varies.
        for name in list(seconds)[:: -1 if i % 2 else 1]:
            try:
                run = processes[name].ask(run=counts[name])
                seconds[name].append(run["seconds"] / counts[name] / batches.get(name, 1))
            except ContenderError as error:
                say(f"{name}: left out, {error}")
                del seconds[name]
        say(f"round {i + 1} of {rounds} done")
    return seconds


def summarise(seconds: dict[str, list[float]], batch: int, base: str) -> dict[str, dict]:
    """Returns the speeds of contenders, and how many times as fast as each the base is.

    Args:
      seconds: {name: seconds per step in each round}.
      batch: images in a step.
      base: name of the contender to compare with.

    Returns:
      {name: {"images_per_second": median, "seconds_per_step": [...], "base_is_faster": [median,
      smallest, largest ratio]}}; the base itself has no "base_is_faster".
    """
    figures: dict[str, dict] = {}
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


def percentiles(process: Process) -> dict[str, float]:
    """Returns the median and the 99th percentile of a step's milliseconds."""
    found = [1e3 * s for s in process.ask(latencies=LATENCIES)["latencies"]]
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p99_ms": cuts[98]}


def differences(processes: dict[str, Process], folder: str, base: str) -> dict[str, float]:
    """Returns by how much logits differ from the base's, relative to its largest.

    Those without logits, or with other weights, are left out.
    """
    logits = {}
    for name, process in processes.items():
        path = os.path.join(folder, f"{name}.npy")
        if process.ask(logits=path)["written"]:
            logits[name] = np.load(path).astype(np.float32)
    expected = logits.pop(base, None)
    if expected is None:
        return {}
    scale = float(abs(expected).max())
    return {name: float(abs(found - expected).max()) / scale for name, found in logits.items()}


def measure(args: argparse.Namespace, say: Say = print) -> dict:
    """Runs the comparison; returns the record that `results.py` stores and shows.

    Args:
      args: from `parser`.
      say: reports progress.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(args, folder, say)


def _measure(args: argparse.Namespace, folder: str, say: Say) -> dict:
    engines = args.mode == "inference" and args.device == "cpu"
    chosen = args.contenders or [*PEERS, *(ENGINES if engines else ())]
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
        "threads": len(os.sched_getaffinity(0)),
        "files": folder if set(ENGINES) & set(chosen) else "",
    }
    if options["files"]:
        command = [sys.executable, str(HERE / "engine_files.py"), folder, json.dumps(options)]
        subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    pythons = dict.fromkeys(NAMES, sys.executable)
    pythons.update(torch=args.torch_python, torch_compile=args.torch_python)
    pythons["keras"] = args.keras_python
    pythons.update(dict.fromkeys(ENGINES, args.engine_python))
    processes, facts = start(chosen, pythons, options, args.cold, say)
    try:
        machine = None
        if "densenet_jax" in processes:
            machine = processes["densenet_jax"].ask(machine=True)
        counts = {
            name: max(1, round(args.seconds / fact["step_seconds"])) for name, fact in facts.items()
        }
        batches = {name: fact["batches"] for name, fact in facts.items()}
        seconds = alternate(processes, counts, args.rounds, say, batches)
        figures = summarise(seconds, args.batch, "densenet_jax")
        apart = differences({name: processes[name] for name in figures}, folder, "densenet_jax")
        for name, difference in apart.items():
            figures[name]["differs"] = difference
        if args.mode == "inference" and args.batch == 1:
            for name in (name for name in figures if batches[name] == 1):
                figures[name].update(percentiles(processes[name]))
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
    """Parses integers separated by commas."""
    return tuple(map(int, text.split(",")))


def names(text: str) -> list[str]:
    """Parses names of contenders separated by commas.

    Raises:
      ArgumentTypeError: a name is unknown.
    """
    chosen = text.split(",")
    for name in set(chosen) - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"there is no contender {name!r}; the contenders are {', '.join(NAMES)}"
        )
    return chosen


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=("train", "inference"), default="train")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="default: float32 on a CPU, bfloat16 on a GPU; int8: for the engines, in inference",
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--blocks", type=whole_numbers, default=(6, 12, 24, 16), metavar="N,N,N,N")
    parser.add_argument("--contenders", type=names, metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="approximate duration of a contender's turn"
    )
    parser.add_argument(
        "--torch-python", default=sys.executable, help="interpreter with torch and torchvision"
    )
    parser.add_argument(
        "--keras-python", default=sys.executable, help="interpreter with keras and jax"
    )
    parser.add_argument(
        "--engine-python", default=sys.executable, help="interpreter with onnxruntime and openvino"
    )
    parser.add_argument("--compile-mode", default="default", help="mode of torch.compile")
    parser.add_argument("--cold", action="store_true", help="torch.compile ignores its cache")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    parser.add_argument(
        "--store", action="store_true", help="add the results to benchmarks/results.md"
    )
    return parser


def main() -> int:
    args = parser().parse_args()
    record = measure(args, say=lambda text: print(text, file=sys.stderr, flush=True))
    if not record["contenders"]:
        print("No contender could run; the reasons are above.", file=sys.stderr)
        return 1
    print(results.comparison(record))
    if args.output:
        args.output.write_text(json.dumps([record], indent=1) + "\n")
    if args.store:
        results.merge([record])
    return 0


if __name__ == "__main__":
    sys.exit(main())
