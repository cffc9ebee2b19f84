"""Names from files, folders and hubs cannot steer a terminal, a log, a pipe or a spreadsheet."""

import io
import logging
import subprocess
import sys

import pytest
from rich.table import Table

from densenet_jax import cli, terminal
from densenet_jax.cli import commands
from densenet_jax.data.sources.source import DataError
from densenet_jax.training.errors import ConfigError

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\nok\t\u202e\u2028\udcff\0[red]:smile:"
ESCAPED = (
    r"\x1b]0;title\x07\x1b[2J\x9b31m\r\nok\t\u202e\u2028\udcff\x00[red]:smile:"  # nothing is lost
)


def test_printable_escapes_what_is_not_visible():
    assert terminal.printable(HOSTILE) == ESCAPED
    assert terminal.printable("Größe 猫 🐈 é") == "Größe 猫 🐈 é"


@pytest.mark.parametrize("first", [*"=+-@＝＋－＠", "\t=", "\r=", " ="])
def test_no_cell_is_a_formula(first):
    assert terminal.cell(f"{first}1+1")[0] in "'\\"
    assert terminal.cell("plain=1") == "plain=1"


def test_a_console_shows_strings_as_they_are():
    file = io.StringIO()
    console = terminal.Console(file, soft_wrap=True)
    table = Table(HOSTILE, box=None)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table, soft_wrap=True)
    assert [line.strip() for line in file.getvalue().splitlines()] == [ESCAPED] * 3


def test_each_argument_of_an_error_is_a_line():
    assert terminal.lines(DataError("Do:", f"  cat {HOSTILE}")) == ["Do:", f"  cat {ESCAPED}"]
    assert terminal.lines(ConfigError(f"No {HOSTILE}.")) == [f"No {ESCAPED}."]
    assert terminal.lines(OSError(2, "No such file", "a\nb")) == [
        r"[Errno 2] No such file: 'a\nb'".replace("\\n", "\\n")
    ]


def test_errors_of_commands_are_printable(monkeypatch, capsys):
    def fail(*_, **__):
        raise DataError(f"The class {HOSTILE} is empty.")

    monkeypatch.setattr(commands, "models", fail)
    assert cli.main(["main.py", "models"]) == 2
    assert capsys.readouterr().err == f"error: The class {ESCAPED} is empty.\n"
    assert cli.main(["main.py", "a\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_records_of_the_log_are_one_line():
    record = logging.LogRecord("a", logging.WARNING, "", 0, "The class %s", (HOSTILE,), None)
    assert terminal.LogFormatter().format(record) == f"WARNING: The class {ESCAPED}"


def test_output_in_another_encoding_loses_nothing():
    code = "from densenet_jax import terminal; terminal.set_up(); terminal.say('猫 \\x1b')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"\\u732b \\x1b\n")
