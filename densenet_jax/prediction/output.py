"""Writes predictions as a table on a terminal, as lines in a pipe, as JSON or as CSV."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from densenet_jax.prediction.predict import Answer
from densenet_jax.report import pictures
from densenet_jax.terminal import Console, cell, printable

PICTURE = 14  # width of a picture on a terminal in characters, each of which shows two pixels
BAR = 12  # width of the bar of a probability in characters
FORMATS = ("table", "json", "csv")
NONE = "no label from its threshold on"


Write = Callable[[Answer], object]


def show(answers: Iterable[Answer], form: str = "table", file: TextIO | None = None) -> int:
    """Writes answers as soon as they arrive and returns the command's exit code.

    Args:
      answers: as `predict.predict` yields them.
      form: "table", "json" (one object per line) or "csv" (one row for each image and class).
      file: where to write; None: standard output.

    Returns:
      2 if any image could not be predicted, otherwise 0.

    Raises:
      ValueError: the form is unknown.
    """
    if form not in FORMATS:
        raise ValueError(f"There is no output format {form!r}; use one of {', '.join(FORMATS)}.")
    file = sys.stdout if file is None else file
    write = {"table": _table, "json": _json, "csv": _csv}[form](file)
    failed = False
    try:
        for answer in answers:
            failed |= answer.error is not None
            write(answer)
            file.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    return 2 if failed else 0


def _json(file: TextIO) -> Write:
    """Returns a function that writes an answer as a line of JSON."""

    def write(answer: Answer) -> None:
        unit = "value" if answer.outputs.task == "regression" else "probability"
        ranks = zip(answer.classes, answer.labels, answer.values, strict=True)
        found: list[dict[str, Any]] = [{"class": i, "label": n, unit: p} for i, n, p in ranks]
        for row, present in zip(found, answer.present, strict=False):
            row["present"] = present
        record = {
            "path": answer.path,
            "predictions": found,
            "overlay": answer.overlay,
            "error": answer.error,
        }
        file.write(json.dumps({k: v for k, v in record.items() if v is not None}) + "\n")

    return write


def _csv(file: TextIO) -> Write:
    """Returns a function that writes an answer as rows of CSV, the first one after a header.

    Of regression, the column `probability` is called `value`; of several labels there is a column
    `present`, and an image without any has a row without a label.
    """
    writer = csv.writer(file, lineterminator="\n")
    began = False

    def write(answer: Answer) -> None:
        nonlocal began
        task = answer.outputs.task
        several = ["present"] * (task == "multilabel")
        if not began:
            unit = "value" if task == "regression" else "probability"
            writer.writerow(["path", "rank", "class", "label", unit, *several, "overlay", "error"])
            began = True
        path, overlay = cell(answer.path), cell(answer.overlay or "")
        if not answer.classes:
            blank = [""] * (4 + len(several))
            writer.writerow([path, *blank, overlay, cell(answer.error or "")])
        ranks = zip(answer.classes, answer.labels, answer.values, strict=True)
        for rank, (number, label, value) in enumerate(ranks, 1):
            present = [int(p) for p in answer.present[rank - 1 : rank]]
            row = [path, rank, number, cell(label), _number(answer, value)]
            writer.writerow([*row, *present, overlay, ""])

    return write


def _table(file: TextIO) -> Write:
    """Returns a function that writes an answer as a table row, or as a line without a terminal."""
    console = Console(file)
    if not console.is_terminal:
        return lambda answer: file.write(_line(answer) + "\n")

    def write(answer: Answer) -> None:
        # Each answer is a grid of its own with fixed widths: rows align, and each is printed at
        # once, whereas a common table would wait for the last answer.
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(width=PICTURE, vertical="middle")
        row.add_column(ratio=1)
        picture = Text("")
        if console.color_system and answer.image is not None:
            picture = half_blocks(answer.image, PICTURE)
        row.add_row(picture, _text(answer))
        console.print(row)
        console.print()

    return write


def _text(answer: Answer) -> Text:
    """Returns an answer in colour: its path, then a line with a bar for each class."""
    # Text, unlike a string, is not parsed for markup, so a file may be called [red].
    text = Text(printable(answer.path), style="bold", no_wrap=True, overflow="ellipsis")
    if answer.error is not None:
        return text.append(f"\nerror: {printable(answer.error)}", style="not bold red")
    if not answer.classes:
        text.append(f"\n{NONE}", style="not bold")
    width = max(map(len, answer.labels), default=0)
    for rank, (label, value) in enumerate(zip(answer.labels, answer.values, strict=True)):
        strong = answer.present[rank] if answer.present else not rank
        style = "bold green" if strong else "not bold"
        if answer.outputs.task == "regression":
            text.append(f"\n{value:12.6g} ", style="bold green")
        else:
            bar = "█" * round(BAR * value)
            text.append(f"\n{value:7.2%} ", style=style)
            text.append(f"{bar:{BAR}} ", style="not bold cyan")
        text.append(f"{printable(label):{width}}", style=style)
    if answer.overlay:
        text.append(f"\n{printable(answer.overlay)}", style="not bold dim")
    return text


def _line(answer: Answer) -> str:
    """Returns an answer as a line of plain text."""
    if answer.error is not None:
        return f"{printable(answer.path)}: error: {printable(answer.error)}"
    shown = [
        f"{printable(name)} {value:.6g}"
        if answer.outputs.task == "regression"
        else f"{printable(name)} {value:.2%}"
        for name, value in zip(answer.labels, answer.values, strict=True)
    ]
    line = f"{printable(answer.path)}: {', '.join(shown) or NONE}"
    return f"{line} ({printable(answer.overlay)})" if answer.overlay else line


def _number(answer: Answer, value: float) -> str:
    """Returns a value with a fixed number of digits: 6 after the point of a probability."""
    return f"{value:.8g}" if answer.outputs.task == "regression" else f"{value:.6f}"


def half_blocks(image: np.ndarray, columns: int) -> Text:
    """Returns an image as coloured half-block characters, each of which shows two pixels.

    Args:
      image: uint8 [H, W, 1 or 3].
      columns: width in characters; the height keeps the image's proportions.
    """
    small = pictures.to_rgb(pictures.enlarged(pictures.thumbnail(image, columns), columns))
    small = small[: len(small) // 2 * 2].astype(int)
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        text.append("\n" if text else "")
        for above, below in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            text.append("▀", style=style)
    return text
