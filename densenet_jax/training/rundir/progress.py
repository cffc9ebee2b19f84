"""The live line of a run: one that moves where that can be seen, else one now and then."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

# Seconds between the lines in a pipe: at first, and in a run of many hours.
SOON, LATER = 10.0, 60.0


class ProgressLine:
    """Shows step, loss, accuracy, images/s and time left; a context manager.

    A terminal gets a bar, a notebook a line that changes in its place.  A pipe, a file and a
    terminal that cannot move its cursor (TERM=dumb) get whole lines without control characters,
    every 10 seconds at first and every minute at last.  When nobody can be written to any more (a
    closed pipe, a lost terminal), the run goes on in silence.  Of several processes the first one
    speaks, in lines: mpirun makes a pipe look like a terminal.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        describe: Callable[[dict[str, float]], str] = str,
    ):
        """Prepares the line; entering the context shows it.

        Args:
          total_steps: of the run.
          start_step: the step that it goes on from.
          describe: maps the metrics of a step to a short text, see `Task.short`.
        """
        self._total, self._start, self._describe = total_steps, start_step, describe
        self._first: tuple[int, float] | None = None  # step and time, once the first is compiled
        self._printed = time.monotonic()
        self._console = Console(file=sys.stdout, highlight=False)
        self._moving: _Bar | _NotebookLine | None = None

    def __enter__(self):
        if jax.process_count() > 1:
            return self
        if _in_notebook():
            self._moving = _NotebookLine(self._total)
        # Not what FORCE_COLOR claims: a log with colours is still a log.
        elif sys.stdout.isatty() and not self._console.is_dumb_terminal:
            self._moving = _Bar(self._console, self._total, self._start)
        return self

    def __exit__(self, *_):
        if self._moving:
            self._safely(self._moving.stop)

    def update(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Shows the metrics of a training step."""
        now = time.monotonic()
        if self._first is None or step < self._first[0]:  # the run has gone back
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
        """Prints a line that stays."""
        if jax.process_index() != 0:
            return
        if isinstance(self._moving, _Bar):  # the bar has to make room
            self._safely(self._console.print, text, markup=False, soft_wrap=True)
        else:
            self._safely(print, text, flush=True)

    def _safely(self, show, *args, **kwargs) -> None:
        if not safely(show, *args, **kwargs):
            self._moving = None


def safely(show: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
    """Shows something on standard output; False if nobody reads it any more.

    Then what is printed later goes nowhere, so that no other print falls over it.
    """
    try:
        show(*args, **kwargs)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


class _Bar:
    """On a terminal, also a narrow one or one at the end of a slow line."""

    def __init__(self, console: Console, total: int, start: int):
        self._bar = Progress(
            BarColumn(bar_width=12),
            TextColumn(  # one column: on a narrow terminal its end is cut off
                "step {task.completed}/{task.total}  {task.fields[left]} left  {task.fields[text]}",
                table_column=Column(no_wrap=True),
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
    """In Jupyter or Colab; needs no widgets, so that the line is still there in a stored one."""

    def __init__(self, total: int):
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
    """Whether a kernel of Jupyter or Colab shows what is printed; IPython in a shell does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
