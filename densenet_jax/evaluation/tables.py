"""The printed table of an evaluation: a row for each data set, and the worst classes."""

from typing import Any

import numpy as np
from rich.table import Table

from densenet_jax.tasks.task import Task
from densenet_jax.terminal import Console

WIDTH = 110  # of the table of labels, in characters
WORST = 5  # number of classes that are named
SHOWN = 40  # largest number of labels or numbers for which each gets a row
# Titles of the columns of labels and numbers, and the keys of `Task.summary` that they show.
COLUMNS = {
    "known": "examples",
    "positive": "positives",
    "AUROC (95%)": "auroc",
    "av. prec.": "average_precision",
    "threshold": "threshold",
    "sens.": "sensitivity",
    "spec.": "specificity",
    "mean abs. error (95%)": "mae",
    "RMSE": "rmse",
    "R²": "r2",
}


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
    if task.name != "classification" and len(record["classes"]) <= SHOWN:
        wide = Console(width=max(console.width, WIDTH))  # rows stay whole, also in a pipe
        wide.print(by_label(record["classes"], task))
    for metric in task.measured:
        if interval := record.get("intervals", {}).get(metric.key):
            low, high = (metric.show({metric.key: bound}) for bound in interval)
            by = f"drawing {record['groups']} groups" if "groups" in record else "drawing examples"
            console.print(
                f"{metric.title} {metric.show(record)}, 95% interval {low} to {high} (bootstrap, "
                f"{by})",
                soft_wrap=True,
            )
    metric = task.measured[0]
    known = [c for c in record["classes"] if metric.value(c) is not None]
    if len(known) > 1:
        worst = sorted(known, key=metric.score)[:WORST]
        digits = 1 if metric.percent else 3
        named = ", ".join(f"{row['class']} {metric.show(row, digits)}" for row in worst)
        console.print(f"worst by {metric.title}: {named}", soft_wrap=True)


def by_label(rows: list[dict[str, Any]], task: Task) -> Table:
    """Returns a table with a row for each label or number, and 95 % intervals where there are any.

    Args:
      rows: "classes" of the record.
      task: the task of the model.
    """
    columns = {title: key for title, key in COLUMNS.items() if any(key in row for row in rows)}
    table = Table(task.several.removesuffix("s"), *columns, box=None)
    for row in rows:
        cells = []
        for key in columns.values():
            value = row.get(key)
            text = (
                "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            )
            if key in ("auroc", "mae") and (interval := row.get(f"{key}_interval")):
                text += f" ({interval[0]:.3g}-{interval[1]:.3g})"
            cells.append(text)
        table.add_row(row["class"], *cells)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


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


def outside(record: dict[str, Any]) -> str:
    """Returns the result of `outside.assess` as a sentence."""
    kinds = {"energy": "energy", "mahalanobis": "Mahalanobis distance"}
    shown = ", ".join(f"{title} {record[k]:.4f}" for k, title in kinds.items() if k in record)
    return (
        f"told from the {record['examples']} images of {record['data']}, AUROC (0.5: chance): "
        f"{shown}"
    )


def show_sets(record: dict[str, Any]) -> None:
    """Prints how often sets of classes contain the right one, see `conformal.coverage`."""
    console = Console()
    console.print(
        f"sets of classes for a coverage of {1 - record['alpha']:.4g}: {record['mean_size']:.2f} "
        f"classes on average, {record['empty']:.2%} are empty",
        soft_wrap=True,
    )
    rows = [row for row in record["classes"] if row["coverage"] is not None]
    table = Table("class", "calibrated on", "examples", "coverage", "", box=None)
    for row in sorted(rows, key=lambda row: row["coverage"])[:SHOWN]:
        note = "too few to rule it out" if row["in_every_set"] else ""
        numbers = (f"{row['calibrated_on']:,}", f"{row['examples']:,}", f"{row['coverage']:.3f}")
        table.add_row(row["class"], *numbers, note)
    console.print(table)
