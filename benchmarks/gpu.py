"""Measures everything that needs a GPU within a few minutes.

    python benchmarks/gpu.py --minutes=9 --output=gpu.json        # on the machine with the GPU
    python benchmarks/gpu.py --merge gpu.json                     # afterwards, on any machine

The phases, in this order (--phases=NAME,... selects): the fused kernels compared with their plain
counterparts; the gradient of DenseNet-121 with and without the kernels; comparisons with other
implementations in training at batch 256 and in inference at batch 256 and 1024; a profile of the
training step; growth with depth, batch and image size.

Each phase is a process of its own, so that a crash or a hang loses only that phase.  The output
file is written after each result.  --tiny runs all phases on a CPU, with small networks and
interpreted kernels.  Requires jax[cuda13], flax and optax, and for the comparisons torch and
torchvision; Keras is left out if it is not installed.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import compare  # noqa: E402
import growth  # noqa: E402
import results  # noqa: E402

TINY = ["--blocks=1,1,1,1", "--size=64", "--device=cpu", "--seconds=0.2"]


Phase = Callable[[argparse.Namespace], Iterator[dict]]


def log(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def _checks(name: str) -> Phase:
    """Returns a phase that runs a function of `kernel_checks`."""

    def run(args: argparse.Namespace) -> Iterator[dict]:
        import kernel_checks

        yield from getattr(kernel_checks, name)(args.tiny)

    return run


def _compared(mode: str, batch: int, contenders: str = ",".join(compare.PEERS)) -> Phase:
    """Returns a phase that compares implementations.

    This project's plain implementation is always included, to show the gain of the fused kernels.

    Args:
      mode: "train" or "inference".
      batch: images in a step.
      contenders: names separated by commas.
    """

    def run(args: argparse.Namespace) -> Iterator[dict]:
        common = [f"--mode={mode}", f"--contenders={contenders},densenet_jax_plain"]
        common += [f"--torch-python={args.torch_python}", f"--keras-python={args.keras_python}"]
        where = [f"--batch={batch}", "--device=gpu", "--rounds=5", "--seconds=2"]
        tiny = ["--batch=2", "--rounds=1", "--dtype=bfloat16", *TINY]
        yield compare.measure(
            compare.parser().parse_args(common + (tiny if args.tiny else where)), say=log
        )

    return run


def _scaled(vary: str, batch: int) -> Phase:
    """Returns a phase that measures growth with `vary`: "depth", "batch" or "size"."""

    def run(args: argparse.Namespace) -> Iterator[dict]:
        where = [f"--vary={vary}", f"--batch={batch}", "--device=gpu", "--seconds=1"]
        tiny = [
            f"--vary={vary}",
            "--batch=2",
            "--values=" + {"depth": "121"}.get(vary, "32"),
            *TINY,
        ]
        yield from growth.rows(growth.parser().parse_args(tiny if args.tiny else where))

    return run


def profile(args: argparse.Namespace) -> Iterator[dict]:
    """Traces training steps; yields a table of the slowest kernels and stores the trace."""
    import contenders
    import jax

    options = {"mode": "train", "batch": 256, "size": 224, "blocks": [6, 12, 24, 16]}
    options.update(dtype="bfloat16", device="gpu")
    if args.tiny:
        options.update(batch=2, size=64, blocks=[1, 1, 1, 1], device="cpu")
    contender = contenders.densenet_jax(options)
    contender.compile()
    contender.step()
    contender.wait()
    folder, steps = args.output.with_suffix(".trace"), 3
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            contender.step()
        contender.wait()
    seconds: dict[str, float] = {}
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/host:CPU" if args.tiny else "/device:GPU"):
                continue
            for line in plane.lines:
                # The other lines group the same kernels by module, operation or step, so counting
                # them as well would count kernels twice.
                if args.tiny or line.name.startswith("Stream"):
                    for event in line.events:
                        seconds[event.name] = seconds.get(event.name, 0) + event.duration_ns / 1e9
    with tarfile.open(args.output.with_suffix(".trace.tar.gz"), "w:gz") as archive:
        archive.add(folder, arcname="trace")
    total = sum(seconds.values())
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:30]
    yield {
        "kind": "profile",
        "what": "Where a training step spends its time",
        "hardware": contender.device,
        "header": ["kernel", "ms per step", "% of all"],
        "rows": [[name[:80], 1e3 * s / steps, 100 * s / total] for name, s in longest],
        "note": f"{steps} steps with {1e3 * total / steps:.2f} ms of kernels each; "
        f"{contender.device}",
        "date": datetime.date.today().isoformat(),
    }


PHASES = {
    "kernels": _checks("kernels"),
    "gradient": _checks("gradient"),
    "train": _compared("train", 256),
    "inference": _compared("inference", 256),
    "inference_1024": _compared("inference", 1024, "densenet_jax,flax,torch_compile,torch"),
    "profile": profile,
    "depth": _scaled("depth", 64),
    "batch": _scaled("batch", 64),
    "size": _scaled("size", 64),
}


def run_phase(args: argparse.Namespace) -> None:
    """Runs one phase in this process; writes the output file after each record."""
    found: list[dict] = []
    for record in PHASES[args.phase](args):
        found = results.join(found, [record])
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def run_all(args: argparse.Namespace) -> list[str]:
    """Runs the phases one after the other until the time is up; returns the failures in words."""
    end, records, failures = time.monotonic() + 60 * args.minutes, [], []
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["JAX_PLATFORMS"] = "cpu" if args.tiny else "cuda"
    for phase in args.phases:
        left = end - time.monotonic()
        if left < 15:
            failures.append(f"{phase}: not started, because no time was left")
            continue
        log(f"== {phase}, {left:.0f} s left")
        part = args.output.with_name(f"{args.output.stem}.{phase}.json")
        part.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "gpu.py"), f"--phase={phase}", f"--output={part}"]
        command += [f"--torch-python={args.torch_python}", f"--keras-python={args.keras_python}"]
        # In a session of its own, so that all processes of the phase can be killed together.
        process = subprocess.Popen(
            command + ["--tiny"] * args.tiny, env=environment, start_new_session=True
        )
        start = time.monotonic()
        try:
            code = process.wait(timeout=left)
            if code:
                failures.append(f"{phase}: failed with exit code {code}; see its output above")
        except subprocess.TimeoutExpired:
            failures.append(f"{phase}: stopped, because the time was up")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if part.exists():
            records = results.join(records, json.loads(part.read_text()))
            args.output.write_text(json.dumps(records, indent=1) + "\n")
            part.unlink()
        log(f"== {phase}: {time.monotonic() - start:.0f} s")
    return failures


def phases(text: str) -> list[str]:
    """Parses names of phases separated by commas.

    Raises:
      ArgumentTypeError: a name is unknown.
    """
    for name in text.split(","):
        if name not in PHASES:
            raise argparse.ArgumentTypeError(
                f"there is no phase {name!r}; the phases are {', '.join(PHASES)}"
            )
    return text.split(",")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="limit for all phases together")
    parser.add_argument("--phases", type=phases, default=list(PHASES), metavar="NAME,...")
    parser.add_argument("--phase", choices=tuple(PHASES), help=argparse.SUPPRESS)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="JSON file for the results; default: gpu.json in the folder $OUT, if set, or here",
    )
    parser.add_argument(
        "--merge",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="add the results of these files to benchmarks/results.md and exit",
    )
    parser.add_argument("--tiny", action="store_true", help="small networks on a CPU, as a test")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="interpreter with torch and torchvision"
    )
    parser.add_argument(
        "--keras-python", default=sys.executable, help="interpreter with keras and jax"
    )
    args = parser.parse_args()
    if args.merge:
        for path in args.merge:
            results.merge(json.loads(path.read_text()))
        return 0
    args.output = args.output or pathlib.Path(os.environ.get("OUT", "."), "gpu.json")
    args.output = args.output.resolve()
    if args.phase:
        run_phase(args)
        return 0
    failures = run_all(args)
    if args.output.exists():
        print(results.page(json.loads(args.output.read_text())))
    print("\n".join(failures) if failures else "All phases succeeded.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
