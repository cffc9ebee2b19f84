"""The progress line of a run: updated in place on a terminal, printed now and then elsewhere."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import jax
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from densenet_jax.terminal import Console, say

# Seconds between the lines in a pipe or file: at first, and in a run of many hours.
SOON, LATER = 10.0, 60.0


class ProgressLine:
    """Shows step, loss, accuracy, images/s and time left; a context manager.

    A terminal gets a bar, and a notebook a line that is updated in place.  A pipe, a file and a
    terminal that cannot move its cursor (TERM=dumb) get whole lines without control characters,
    every 10 seconds at first and every minute later.  If the output can no longer be written (a
    closed pipe, a lost terminal), the run continues without output.  In a job of several processes
    only the first one prints, and always whole lines: mpirun makes a pipe look like a terminal.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        describe: Callable[[dict[str, float]], str] = str,
    ) -> None:
        """Prepares the line; entering the context shows it.

        Args:
          total_steps: number of steps in the whole run.
          start_step: the step at which the run starts or resumes.
          describe: maps the metrics of a step to a short text, see `Task.short`.
        """
        self._total, self._start, self._describe = total_steps, start_step, describe
        self._first: tuple[int, float] | None = (
            None  # step and time of the first update, after compilation
        )
        self._printed = time.monotonic()
        self._console = Console(sys.stdout)
        self._moving: _Bar | _NotebookLine | None = None

    def __enter__(self) -> Self:
        if jax.process_count() > 1:
            return self
        if _in_notebook():
            self._moving = _NotebookLine(self._total)
        # Rich's own check is not used: FORCE_COLOR would make it treat a log file as a terminal.
        elif sys.stdout.isatty() and not self._console.is_dumb_terminal:
            self._moving = _Bar(self._console, self._total, self._start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._moving:
            self._safely(self._moving.stop)

    def update(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Shows the metrics of a training step.

        Args:
          step: the step.
          epoch: number of epochs so far.
          metrics: with "images_per_second" and what `describe` shows.
        """
        now = time.monotonic()
        if self._first is None or step < self._first[0]:  # a rollback
            self._first = (step, now)
        since = now - self._first[1]
        every = min(max(SOON, since / 20), LATER)
        if not self._moving and now - self._printed < every and step != self._total:
            return
        speed = f"{metrics['images_per_second']:.0f} images/s"
        text = f"epoch {epoch:.2f}  {self._describe(metrics)}  {speed}"
        done = step - self._first[0]
        left = _duration(since / done * (self._total - step)) if done else "?"
        if self._moving:
            self._safely(self._moving.show, step, text, left)
        else:
            self._printed = now
            self.note(f"step {step}/{self._total}  {text}  {left} left")

    def note(self, text: str) -> None:
        """Prints a line of text that is not overwritten."""
        if jax.process_index() != 0:
            return
        if isinstance(self._moving, _Bar):  # prints above the bar
            self._safely(self._console.print, text, soft_wrap=True)
        else:
            self._safely(say, text)

    def _safely(self, show: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if not safely(show, *args, **kwargs):
            self._moving = None


def safely(show: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
    """Calls a function that prints; returns False if standard output cannot be written any more.

    In that case standard output is redirected to nowhere, so that no later print fails.

    Args:
      show: the function.
      *args: its arguments.
      **kwargs: its keyword arguments.
    """
    try:
        show(*args, **kwargs)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


class _Bar:
    """The bar on a terminal; made to suit narrow terminals and slow connections."""

    def __init__(self, console: Console, total: int, start: int) -> None:
        self._bar = Progress(
            BarColumn(bar_width=12),
            TextColumn(  # a single column, whose end is cut off on a narrow terminal
                "step {task.completed}/{task.total}  {task.fields[left]} left  {task.fields[text]}",
                table_column=Column(no_wrap=True),
                markup=False,
            ),
            console=console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(
            "", total=total, completed=start, text="compiling", left="?"
        )
        self._bar.start()

    def show(self, step: int, text: str, left: str) -> None:
        self._bar.update(self._task, completed=step, text=text, left=left)

    def stop(self) -> None:
        self._bar.stop()


class _NotebookLine:
    """The line in Jupyter or Colab; it uses no widgets, so a saved notebook still shows it."""

    def __init__(self, total: int) -> None:
        from IPython.display import display

        self._total, self._shown = total, 0.0
        self._text = "compiling"
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def show(self, step: int, text: str, left: str) -> None:
        self._text = f"step {step}/{self._total}  {text}  {left} left"
        if time.monotonic() - self._shown > 0.5 or step == self._total:
            self._shown = time.monotonic()
            self._handle.update(self._bundle(), raw=True)

    def stop(self) -> None:
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        return {"text/plain": self._text}


def _in_notebook() -> bool:
    """Returns whether this is a kernel of Jupyter or Colab; IPython in a shell is not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def _duration(seconds: float) -> str:
    """Returns a time as "1:02:03" or "2:03"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
