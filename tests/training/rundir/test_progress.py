"""The progress line on a terminal, in a pipe, in a notebook, and after the output was closed."""

import itertools
import os
import pty
import subprocess
import sys
import types

import pytest

from densenet_jax.training.rundir import progress
from densenet_jax.training.rundir.progress import ProgressLine

METRICS = {"loss": 2.5, "top1": 0.125, "images_per_second": 1234.0}
# Without the package: only the module, as importing JAX takes a second.
SCRIPT = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("progress", sys.argv[1])
progress = importlib.util.module_from_spec(spec)
spec.loader.exec_module(progress)
with progress.ProgressLine(40, 0, lambda metrics: "loss 2.500  top-1 12.5%") as line:
    line.note("a [note]")
    for step in range(1, 41):
        line.update(step, step / 10, dict(loss=2.5, top1=0.125, images_per_second=1234.0))
        time.sleep(0.02 if len(sys.argv) < 3 else 0)
print("the end", file=sys.stderr)
"""


def on_a_terminal(columns: int, **variables: str) -> str:
    """Returns the text that a terminal of the given width receives."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"} | variables
    command = [sys.executable, "-c", SCRIPT, progress.__file__]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    received = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # Linux: nobody has the other end any more
            break
        if not data:
            break
        received += data
    os.close(ours)
    assert process.wait() == 0
    return received.decode()


def test_a_terminal_gets_a_bar_that_moves_and_leaves_the_cursor_as_it_was():
    text = on_a_terminal(120)
    assert "a [note]\r\n" in text
    assert "step 40/40" in text
    assert "\r\x1b[2K" in text  # drawn again in its place
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_a_narrow_terminal_keeps_the_step():
    text = on_a_terminal(30)
    assert "step 40/40" in text
    assert "images/s" not in text


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    text = on_a_terminal(80, TERM="dumb")
    assert "\x1b" not in text
    assert text.splitlines()[0] == "a [note]"
    assert text.splitlines()[-1].startswith("step 40/40  epoch 4.00  loss 2.500  top-1 12.5%")


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"])
def test_a_pipe_gets_few_plain_lines_whatever_the_environment_claims(variable):
    command = [sys.executable, "-c", SCRIPT, progress.__file__, "quick"]
    said = subprocess.run(
        command, env=os.environ | {variable: "1"}, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in said.stdout
    assert "\r" not in said.stdout
    assert len(said.stdout.splitlines()) == 2  # the note and the last step


def test_a_reader_that_has_gone_ends_no_run():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", SCRIPT, progress.__file__, "quick"]
    process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "the end\n")


def test_lines_in_a_pipe_become_rarer(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine(10**6) as line:
        for step in range(1, 20_001):
            now[0] += 1.0
            line.update(step, 0.0, METRICS)
    steps = [int(text.split("/")[0][5:]) for text in capsys.readouterr().out.splitlines()]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert steps[0] == 10
    assert gaps[0] <= 11
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


class Display:
    """A stand-in for IPython's display, which keeps the last text of each identity."""

    def __init__(self):
        self.shown: list[str] = []

    def display(self, bundle, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(bundle["text/plain"])
        return self

    def update(self, bundle, raw):
        self.shown[-1] = bundle["text/plain"]


def test_a_notebook_gets_one_line_that_changes(monkeypatch, capsys):
    screen = Display()
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = screen.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    with ProgressLine(3) as line:
        for step in (1, 2, 3):
            line.update(step, 0.5, METRICS)
        line.note("a note")
    assert len(screen.shown) == 1
    assert screen.shown[0].startswith("step 3/3  epoch 0.50")
    assert capsys.readouterr().out == "a note\n"
    shell.kernel = None  # IPython in a shell: an ordinary terminal, or here a pipe
    with ProgressLine(3) as line:
        line.update(3, 0.5, METRICS)
    assert len(screen.shown) == 1
    assert capsys.readouterr().out.startswith("step 3/3")
