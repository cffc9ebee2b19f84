"""An evaluation on the screen: a row for each data set, and the classes that do worst."""

from typing import Any

from rich.console import Console
from rich.table import Table

WORST = 5


def show(record: dict[str, Any]) -> None:
    """Prints what `commands.evaluate` writes to evaluation.json."""
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
    table = Table("data", "examples", "top-1", "top-5", "loss", "calibration error", box=None)
    rows = [record, *record["others"]]
    for row in rows:
        cells = [f"{row['examples']}", f"{row['top1']:.2%}", f"{row['top5']:.2%}"]
        cells += [f"{row['loss']:.4f}", f"{row['ece']:.2%}"]
        table.add_row(f"{row['data']} {row['split']}", *cells)
        if row.get("real_top1") is not None:
            real = f"{row['real_top1']:.2%}"
            table.add_row("  any accepted label", f"{row['real_examples']}", real, "", "", "")
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    known = [c for c in record["classes"] if c["examples"]]
    if len(known) > WORST:
        worst = sorted(known, key=lambda c: c["top1"])[:WORST]
        named = ", ".join(f"{c['class']} {c['top1']:.1%}" for c in worst)
        console.print(f"lowest top-1: {named}", highlight=False, markup=False, soft_wrap=True)
