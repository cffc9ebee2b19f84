"""The printed table of an evaluation: a row for each data set, and the worst classes."""

from typing import Any

import numpy as np
from rich.table import Table

from densenet_jax.tasks.task import Task
from densenet_jax.terminal import Console

WORST = 5  # number of classes that are named


def show(record: dict[str, Any], task: Task) -> None:
    """Prints the record that `commands.evaluate` writes to evaluation.json.

    Args:
      record: the record.
      task: the task of the model, which knows the metrics.
    """
    console = Console()
    views = record["crops"] * (1 + record["flip"])
    console.print(
        f"{record['of']}, {record['image_size']}x{record['image_size']}, "
        f"{record['interpolation']}, crop {record['eval_crop']:g}, "
        f"{'one view' if views == 1 else f'{views} views'} of each image",
        soft_wrap=True,
    )
    columns = task.columns
    table = Table("data", "examples", *(column.title for column in columns), box=None)
    rows = [record, *record["others"]]
    for row in rows:
        cells = [f"{row['examples']}", *(column.show(row) for column in columns)]
        table.add_row(f"{row['data']} {row['split']}", *cells)
        if row.get("real_top1") is not None:
            cells = [f"{row['real_examples']}", f"{row['real_top1']:.2%}"]
            table.add_row("  any accepted label", *cells, *[""] * (len(columns) - 1))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if record.get("nonfinite"):
        console.print(
            f"the logits of {record['nonfinite']} of {record['examples']} examples are not finite: "
            "there are no metrics",
        )
        return
    if record.get("undefined"):
        console.print(
            f"without {task.measured[0].title}, and in no mean, because the split lacks one kind "
            f"of their examples: {', '.join(record['undefined'])}",
            soft_wrap=True,
        )
    metric = task.measured[0]
    known = [c for c in record["classes"] if metric.value(c) is not None]
    if len(known) > 1:
        worst = sorted(known, key=metric.score)[:WORST]
        named = ", ".join(f"{row['class']} {metric.show(row, 1)}" for row in worst)
        console.print(f"lowest {metric.title}: {named}", soft_wrap=True)


def show_calibration(record: dict[str, Any]) -> None:
    """Prints the record of calibration.json: reliability before and after, and thresholds.

    Args:
      record: as `calibrate.fit` returns it.
    """
    console = Console()
    console.print(
        f"calibrated on {record['examples']} examples of {record['data']}", soft_wrap=True
    )
    for key, title in (("loss", "loss"), ("ece", "calibration error")):
        before, after = (np.nanmean(np.float64(record[w][key])) for w in ("before", "after"))
        console.print(f"{title} {before:.4f} before, {after:.4f} after", soft_wrap=True)
    if record["uncalibrated"]:
        console.print(
            "left as they are, because the split lacks one kind of their examples: "
            f"{', '.join(record['uncalibrated'])}",
            soft_wrap=True,
        )
    if not record.get("reached"):
        return
    table = Table("label", "threshold", "sensitivity", "specificity", "F1", box=None)
    for label, reached in zip(record["labels"], record["reached"], strict=True):
        if reached["threshold"] is not None:
            shares = [reached[key] for key in ("sensitivity", "specificity", "f1")]
            cells = ["-" if share is None else f"{share:.3f}" for share in shares]
            table.add_row(label, f"{reached['threshold']:.4f}", *cells)
    console.print(f"thresholds by the rule {record['rule']}", soft_wrap=True)
    console.print(table)
