"""Predictions for people and programs: a table on a terminal, lines in a pipe, JSON, CSV."""

import csv
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from densenet_jax.report import pictures

PICTURE = 14  # columns of a picture on a terminal; two pixels share a character
BAR = 12
FORMATS = ("table", "json", "csv")


def show(answers: Iterable[Any], form: str = "table", file: TextIO | None = None) -> int:
    """Writes answers as they come; returns the exit code: 2 if any image has none, else 0.

    Args:
      answers: as `predict.predict` yields them.
      form: "table", "json" (one object a line) or "csv" (one row for each image and class).
      file: None: standard output.

    Raises:
      ValueError: an unknown form.
    """
    if form not in FORMATS:
        raise ValueError(f"Answers come as {', '.join(FORMATS)}, not as {form!r}.")
    file = sys.stdout if file is None else file
    write = {"table": _table, "json": _json, "csv": _csv}[form](file)
    failed = False
    try:
        for answer in answers:
            failed |= answer.error is not None
            write(answer)
            file.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    return 2 if failed else 0


def _json(file: TextIO):
    def write(answer):
        ranks = zip(answer.classes, answer.labels, answer.probabilities, strict=True)
        record = {
            "path": answer.path,
            "predictions": [{"class": i, "label": n, "probability": p} for i, n, p in ranks],
            "overlay": answer.overlay,
            "error": answer.error,
        }
        file.write(json.dumps({k: v for k, v in record.items() if v is not None}) + "\n")

    return write


def _csv(file: TextIO):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "label", "probability", "overlay", "error"])

    def write(answer):
        path, overlay = printable(answer.path), printable(answer.overlay or "")
        if answer.error is not None:
            writer.writerow([path, "", "", "", "", "", printable(answer.error)])
        ranks = zip(answer.classes, answer.labels, answer.probabilities, strict=True)
        for rank, (number, label, probability) in enumerate(ranks, 1):
            writer.writerow([path, rank, number, label, f"{probability:.6f}", overlay, ""])

    return write


def _table(file: TextIO):
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        return lambda answer: file.write(_line(answer) + "\n")

    def write(answer):
        # A grid of its own for each answer, with fixed widths: rows align, and none waits.
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


def _text(answer) -> Text:
    # Text is not parsed for markup, so a file may be called [red].
    text = Text(printable(answer.path), style="bold", no_wrap=True, overflow="ellipsis")
    if answer.error is not None:
        return text.append(f"\nerror: {printable(answer.error)}", style="not bold red")
    width = max(map(len, answer.labels))
    for rank, (label, chance) in enumerate(zip(answer.labels, answer.probabilities, strict=True)):
        bar = "█" * round(BAR * chance)
        style = "not bold" if rank else "bold green"
        text.append(f"\n{chance:7.2%} ", style=style)
        text.append(f"{bar:{BAR}} ", style="not bold cyan")
        text.append(f"{label:{width}}", style=style)
    if answer.overlay:
        text.append(f"\n{printable(answer.overlay)}", style="not bold dim")
    return text


def _line(answer) -> str:
    if answer.error is not None:
        return f"{printable(answer.path)}: error: {printable(answer.error)}"
    ranks = zip(answer.labels, answer.probabilities, strict=True)
    line = f"{printable(answer.path)}: " + ", ".join(f"{n} {p:.2%}" for n, p in ranks)
    return f"{line} ({printable(answer.overlay)})" if answer.overlay else line


def half_blocks(image: np.ndarray, columns: int) -> Text:
    """Returns an image as characters of two pixels each: the upper half block and what is below.

    Args:
      image: uint8 [H, W, 1 or 3].
      columns: of the text; the height follows.
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


def printable(text: str) -> str:
    """Returns text without what would act on a terminal, or cannot be written to it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
