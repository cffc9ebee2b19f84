"""Text for people: names from files and folders cannot steer a terminal, a log or a spreadsheet.

Whatever the commands print passes through here.  A name may hold an escape sequence that clears the
screen, a line break that adds a line to a log, letters that are written from right to left, or a
formula; all of them are shown as Python writes them in a string: \\x1b, \\n, \\u202e.
"""

import logging
import sys
from typing import Any, TextIO

import rich.console
from rich.text import Text

FORMULA = tuple("=+-@＝＋－＠")  # spreadsheets compute what begins with one of these


def printable(text: object) -> str:
    """Returns text in one line, with everything escaped that is not a visible character or a space.

    Also surrogates are escaped, which stand for the bytes of a file name that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def cell(text: object) -> str:
    """Returns text for a cell of CSV: printable, and with an apostrophe before a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


def lines(error: BaseException) -> list[str]:
    """Returns an exception's message as printable lines; each of its arguments is a line."""
    whole = error.args if all(isinstance(a, str) for a in error.args) else ()
    # An exception with a message of its own, as OSError, shows more than its arguments.
    return [printable(line) for line in (whole if str(error) == "\n".join(whole) else [error])]


def say(*shown: object, file: TextIO | None = None) -> None:
    """Prints lines, each printable, at once.

    Args:
      *shown: the lines.
      file: None: standard output.
    """
    print(*map(printable, shown), sep="\n", file=file or sys.stdout, flush=True)


class Console(rich.console.Console):
    """A console whose strings are shown as they are, without markup and control characters.

    Only strings are escaped: a `Text` must be made of `printable` ones.
    """

    def __init__(self, file: TextIO | None = None, **options: Any) -> None:
        super().__init__(file=file, highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns a string as rich's Text; rich calls this for each printed string and cell."""
        return super().render_str(printable(text), **options)


class LogFormatter(logging.Formatter):
    """Formats a record as "WARNING: message" in one line."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Returns the line, without a traceback, which logging adds."""
        return printable(super().formatMessage(record))


def set_up() -> None:
    """Makes this process's log printable, and its output replace what an encoding lacks."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's output, or a test's, has not
            stream.reconfigure(errors="backslashreplace")
