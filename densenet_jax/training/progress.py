"""The live line of a run: one that moves on a terminal, one every few seconds in a pipe."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """Shows step, loss, accuracy, images/s and time left; a context manager."""

    def __init__(self, total_steps: int, start_step: int = 0, every_seconds: float = 10.0):
        self._total, self._start, self._every = total_steps, start_step, every_seconds
        self._began = self._printed = time.monotonic()
        self._console = Console(file=sys.stdout, highlight=False)
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def update(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Shows the metrics of a training step."""
        text = (
            f"epoch {epoch:.2f}  loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.1%}  "
            f"{metrics['images_per_second']:.0f} images/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._printed >= self._every or step == self._total:
            self._printed = now
            left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
            self.note(f"step {step}/{self._total}  {text}  {_duration(left)} left")

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
