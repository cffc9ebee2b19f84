"""Every figure that needs a GPU, in a few minutes on one.

    python benchmarks/gpu.py --minutes=9 --output=gpu.json        # on the machine with the GPU
    python benchmarks/gpu.py --merge gpu.json                     # afterwards, anywhere

Phases, in this order (--phases=NAME,... chooses): the kernels against their plain twins, the
gradient of DenseNet-121 with and without them, side by side with peers in training at batch 256
and in inference at 256 and 1024, a profile of the training step, growth with depth, batch and
image size.

Each phase is a process of its own, so that a crash or a hang costs that phase alone; what it has
found is in the output after each row.  --tiny tries all of it on a CPU, with small networks and
interpreted kernels.  Needs jax[cuda13], flax, optax; for the peers torch and torchvision; Keras is
left out where it is not installed.
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


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _checks(name: str) -> Callable[[argparse.Namespace], Iterator[dict]]:
    def run(args):
        import kernel_checks

        yield from getattr(kernel_checks, name)(args.tiny)

    return run


def _compared(mode: str, batch: int, contenders: str = ",".join(compare.PEERS)):
    """Returns a phase that compares; also with this project's plain path, to see kernels pay."""

    def run(args):
        common = [f"--mode={mode}", f"--contenders={contenders},densenet_jax_plain"]
        common += [f"--torch-python={args.torch_python}", f"--keras-python={args.keras_python}"]
        where = [f"--batch={batch}", "--device=gpu", "--rounds=5", "--seconds=2"]
        tiny = ["--batch=2", "--rounds=1", "--dtype=bfloat16", *TINY]
        yield compare.measure(
            compare.parser().parse_args(common + (tiny if args.tiny else where)), say=log
        )

    return run


def _scaled(vary: str, batch: int):
    def run(args):
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
    """Traces training steps; yields the kernels that take longest, and keeps the trace."""
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
                # Other lines group the same kernels by module, operation or step.
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
        "header": ["kernel", "ms a step", "% of all"],
        "rows": [[name[:80], 1e3 * s / steps, 100 * s / total] for name, s in longest],
        "note": f"{steps} steps, {1e3 * total / steps:.2f} ms of kernels each; {contender.device}",
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
    """Runs one phase in this process; writes what it found after each record."""
    found: list[dict] = []
    for record in PHASES[args.phase](args):
        found = results.join(found, [record])
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def run_all(args: argparse.Namespace) -> list[str]:
    """Runs the phases one after the other until time is up; returns what went wrong."""
    end, records, failures = time.monotonic() + 60 * args.minutes, [], []
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["JAX_PLATFORMS"] = "cpu" if args.tiny else "cuda"
    for phase in args.phases:
        left = end - time.monotonic()
        if left < 15:
            failures.append(f"{phase}: no time left")
            continue
        log(f"== {phase}, {left:.0f} s left")
        part = args.output.with_name(f"{args.output.stem}.{phase}.json")
        part.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "gpu.py"), f"--phase={phase}", f"--output={part}"]
        command += [f"--torch-python={args.torch_python}", f"--keras-python={args.keras_python}"]
        # A session of its own: what a phase has started ends with it.
        process = subprocess.Popen(
            command + ["--tiny"] * args.tiny, env=environment, start_new_session=True
        )
        start = time.monotonic()
        try:
            code = process.wait(timeout=left)
            if code:
                failures.append(f"{phase}: ended with code {code}; its own output says why")
        except subprocess.TimeoutExpired:
            failures.append(f"{phase}: stopped, time was up")
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
    for name in text.split(","):
        if name not in PHASES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PHASES)}")
    return text.split(",")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="all phases together, at most")
    parser.add_argument("--phases", type=phases, default=list(PHASES), metavar="NAME,...")
    parser.add_argument("--phase", choices=tuple(PHASES), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path, help="JSON; $OUT/gpu.json if OUT is set")
    parser.add_argument("--merge", type=pathlib.Path, nargs="+", metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="try it on a CPU")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch and torchvision")
    parser.add_argument("--keras-python", default=sys.executable, help="has keras and jax")
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
    print("\n".join(failures) if failures else "Every phase was run.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
