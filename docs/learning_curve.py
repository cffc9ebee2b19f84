"""Draws the learning curve of a run: python docs/learning_curve.py runs/digits docs/digits.png"""

import sys

import matplotlib.pyplot as plt

from densenet_jax.training.rundir import metrics_log


def main(workdir: str, picture: str) -> None:
    records = metrics_log.read(f"{workdir}/metrics.jsonl")
    train = [r for r in records if r["split"] == "train"]
    evaluated = [r for r in records if r["split"] == "eval"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    left.plot(
        [r["epoch"] for r in train],
        [r["loss"] for r in train],
        lw=0.6,
        label="training, mixed images",
    )
    left.plot([r["epoch"] for r in evaluated], [r["loss"] for r in evaluated], "o-", label="test")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    left.legend(frameon=False)
    right.plot([r["epoch"] for r in evaluated], [100 * r["top1"] for r in evaluated], "o-")
    right.set(xlabel="epoch", ylabel="top-1 on test digits, %")
    right.annotate(
        f"{evaluated[-1]['top1']:.2%}",
        (evaluated[-1]["epoch"], 100 * evaluated[-1]["top1"]),
        textcoords="offset points",
        xytext=(2, -34),
        ha="right",
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
