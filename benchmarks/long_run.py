"""Checks a long run for leaks and loss of speed: 20,000 steps with evaluations and checkpoints.

  python benchmarks/long_run.py [--steps=20000]

Trains a tiny model and samples the process every 500 steps: resident memory, open files, threads
and time.  Prints a table with a row for each tenth of the run, and the ratio of the speeds of the
last and the second tenth.
"""

import argparse
import importlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from densenet_jax import cli
from densenet_jax.training import loop
from densenet_jax.training.rundir.recorder import Recorder

EVERY = 500  # steps between samples


def sample(step: int) -> dict[str, float]:
    """Returns {"step", "time" (seconds), "memory" (resident, MiB), "files", "threads"}."""
    status = pathlib.Path("/proc/self/status").read_text().split()
    return {
        "step": step,
        "time": time.monotonic(),
        "memory": int(status[status.index("VmRSS:") + 1]) / 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status[status.index("Threads:") + 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="length of the run")
    steps = parser.parse_args().steps
    cli.set_up_process()
    config = importlib.import_module("configs.digits").get_config()
    config.update_from_flattened_dict(
        {
            "model.depth": 10,
            "model.growth_rate": 2,
            "data.image_size": 8,
            "batch_size": 8,
            "total_steps": steps,
            "eval_every_epochs": steps / 40 * 8 / 1437,
            "checkpoint_every_steps": 250,
        }
    )
    samples: list[dict[str, float]] = []
    add = Recorder.add

    def watch(self: Recorder, step: int, *rest: Any) -> None:
        add(self, step, *rest)
        if step % EVERY == 0:
            samples.append(sample(step))

    Recorder.add = watch
    loop.train_and_evaluate(config.lock(), tempfile.mkdtemp(prefix="long_run_"))
    print("\n| steps | MiB | open files | threads | steps/s |\n|---:|---:|---:|---:|---:|")
    tenth = max(len(samples) // 10, 2)
    speeds = []
    for i in range(0, len(samples) - tenth + 1, tenth):
        part = samples[i : i + tenth]
        middle = {k: statistics.median(s[k] for s in part) for k in part[0]}
        took = part[-1]["time"] - part[0]["time"]
        speeds.append((part[-1]["step"] - part[0]["step"]) / took)
        print(
            f"| {part[-1]['step']} | {middle['memory']:.0f} | {middle['files']:.0f} "
            f"| {middle['threads']:.0f} | {speeds[-1]:.0f} |"
        )
    print(f"\nspeed of the last tenth / speed of the second: {speeds[-1] / speeds[1]:.2f}")


if __name__ == "__main__":
    main()
