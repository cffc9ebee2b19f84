"""What does training on other classes save?  Transfer between the two halves of CIFAR-10.

  python benchmarks/transfer.py [--seeds=3] [--data-dir=DIR] [--out=runs/transfer] [--epochs=4]
      [--steps=300]

For each seed: a small DenseNet-BC learns five classes from 5,000 images each; then the other five
are learned from 100 images each, from those weights and from scratch.  All three are ordinary runs
of main.py: `data.classes` and `data.examples_per_class` choose the data, `init_from` the weights.
The 100 images are others for each seed.  Fine-tuning and scratch get as many steps each, and each
the better of two learning rates, judged by the mean over the seeds on images of the training split
that no run trains on.  Only the runs of the chosen rates see the 5,000 test images.
"""

import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from densenet_jax import cli
from densenet_jax.training.rundir import metrics_log

FIRST = ("airplane", "automobile", "bird", "cat", "deer")
SECOND = ("dog", "frog", "horse", "ship", "truck")
SHOTS = 100
HELD_OUT = "train[45000:]"  # slices of the split: 5,000 images have about 500 of each class
RATES = {"fine-tuned": (0.002, 0.01), "scratch": (0.01, 0.03)}


def call(*words: str) -> None:
    """Runs a command line; ends where it fails."""
    code = cli.main(["main.py", *words])
    if code:
        sys.exit(code)


def run(workdir: pathlib.Path, data_dir: str, **changes) -> float:
    """Trains, or goes on, in a directory; returns the last top-1."""
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
    """Returns a run's top-1 on the test split."""
    call("evaluate", f"--workdir={workdir}", "--config.data.eval_split=test")
    return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4.0, help="on the first five classes")
    parser.add_argument("--steps", type=int, default=300, help="on the other five")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/transfer"))
    args = parser.parse_args()
    folders = [args.out / f"seed{seed}" for seed in range(args.seeds)]
    judged = {(start, rate): [] for start, rates in RATES.items() for rate in rates}
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
    print(f"on the images held out: {json.dumps(named)}")
    found = {}
    for start, rates in RATES.items():
        rate = max(rates, key=lambda r: statistics.mean(judged[start, r]))
        found[start] = [test_top1(folder / f"{start}-{rate}") for folder in folders]
        values = ", ".join(f"{v:.2%}" for v in found[start])
        print(f"{start}: {statistics.mean(found[start]):.2%} ({values}), learning rate {rate}")
    gains = [a - b for a, b in zip(found["fine-tuned"], found["scratch"], strict=True)]
    print(f"gain: {statistics.mean(gains):.2%} ({', '.join(f'{g:.2%}' for g in gains)})")


if __name__ == "__main__":
    main()
