"""Measures transfer learning between two halves of CIFAR-10's classes.

  python benchmarks/transfer.py [--seeds=3] [--data-dir=DIR] [--out=runs/transfer] [--epochs=4]
      [--steps=300]

For each seed, a small DenseNet-BC learns five classes from 5,000 images each; then the other five
classes are learned from 100 images each, once from those weights and once from scratch.  All three
are ordinary runs of main.py: `data.classes` and `data.examples_per_class` choose the data,
`init_from` the weights.  Each seed has its own 100 images.  Fine-tuning and training from scratch
have the same number of steps, and each uses the better of two learning rates by the mean accuracy
over the seeds on images of the training split that no run trains on.  Only the runs with the chosen
rates are evaluated on the 5,000 test images.
"""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from densenet_jax import cli
from densenet_jax.training.rundir import metrics_log

FIRST = ("airplane", "automobile", "bird", "cat", "deer")
SECOND = ("dog", "frog", "horse", "ship", "truck")
SHOTS = 100
HELD_OUT = "train[45000:]"  # a slice of 5,000 images with about 500 of each class
RATES = {"fine-tuned": (0.002, 0.01), "scratch": (0.01, 0.03)}


def call(*words: str) -> None:
    """Runs a command of main.py; exits with its exit code if it fails."""
    code = cli.main(["main.py", *words])
    if code:
        sys.exit(code)


def run(workdir: pathlib.Path, data_dir: str, **changes: Any) -> float:
    """Trains or resumes a run; returns the last top-1, from 0 to 1.

    Args:
      workdir: the run's directory.
      data_dir: see `config.data.data_dir`.
      **changes: values of the configuration, with "__" in place of dots in keys.
    """
    words = [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]
    call(
        "--config=configs/cifar10.py:cpu30",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.model.block_sizes=(2,2,2)",
        "--config.eval_every_epochs=1000000",
        *words,
    )
    return metrics_log.read(workdir / "metrics.jsonl")[-1]["top1"]


def test_top1(workdir: pathlib.Path) -> float:
    """Returns a run's top-1 on the test split, from 0 to 1."""
    call("evaluate", f"--workdir={workdir}", "--config.data.eval_split=test")
    return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4.0, help="on the first five classes")
    parser.add_argument("--steps", type=int, default=300, help="on the other five classes")
    parser.add_argument("--data-dir", default="", help="directory of the data")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/transfer"), help="folder of the runs"
    )
    args = parser.parse_args()
    folders = [args.out / f"seed{seed}" for seed in range(args.seeds)]
    judged: dict[tuple[str, float], list[float]] = {
        (start, rate): [] for start, rates in RATES.items() for rate in rates
    }
    for seed, folder in enumerate(folders):
        run(
            folder / "first",
            args.data_dir,
            data__classes=FIRST,
            data__eval_split="test",
            total_epochs=args.epochs,
            seed=seed,
        )
        for start, rate in judged:
            top1 = run(
                folder / f"{start}-{rate}",
                args.data_dir,
                data__classes=SECOND,
                data__examples_per_class=SHOTS,
                data__train_split=f"train[{5000 * seed}:{5000 * (seed + 1)}]",
                data__eval_split=HELD_OUT,
                init_from=folder / "first" if start == "fine-tuned" else "",
                optimizer__learning_rate=rate,
                batch_size=100,
                total_steps=args.steps,
                seed=seed,
            )
            judged[start, rate].append(top1)
    named = {f"{start} {rate}": values for (start, rate), values in judged.items()}
    print(f"top-1 on the held-out images: {json.dumps(named)}")
    found = {}
    for start, rates in RATES.items():
        rate = max(rates, key=lambda r: statistics.mean(judged[start, r]))
        found[start] = [test_top1(folder / f"{start}-{rate}") for folder in folders]
        values = ", ".join(f"{v:.2%}" for v in found[start])
        print(f"{start}: {statistics.mean(found[start]):.2%} ({values}), learning rate {rate}")
    gains = [a - b for a, b in zip(found["fine-tuned"], found["scratch"], strict=True)]
    print(
        f"gain of fine-tuning: {statistics.mean(gains):.2%} "
        f"({', '.join(f'{g:.2%}' for g in gains)})"
    )


if __name__ == "__main__":
    main()
