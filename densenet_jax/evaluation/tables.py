"""The printed table of an evaluation: a row for each data set, and the worst classes."""

from typing import Any

from rich.console import Console
from rich.table import Table

from densenet_jax.tasks.task import Task

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
        highlight=False,
        markup=False,
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
            highlight=False,
        )
        return
    metric = task.measured[0]
    known = [c for c in record["classes"] if metric.value(c) is not None]
    if len(known) > 1:
        worst = sorted(known, key=metric.score)[:WORST]
        named = ", ".join(f"{row['class']} {metric.show(row, 1)}" for row in worst)
        console.print(
            f"lowest {metric.title}: {named}", highlight=False, markup=False, soft_wrap=True
        )
