"""The command line behind main.py: commands and flags are a table, in `table`."""

import logging
import os
import sys
from collections.abc import Sequence

from densenet_jax.cli.parsing import UsageError, parse
from densenet_jax.cli.table import COMMANDS, help_text

__all__ = ["COMMANDS", "main", "parse", "set_up_process"]

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start again to go on


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    if {"--help", "-h", "-help", "help"} & set(argv[1:]):
        print(help_text(), end="")
        return 0
    try:
        command, config, options = parse(argv)
    except UsageError as e:
        return _fail(e)
    set_up_process()
    from densenet_jax import commands  # after the process is set up, and only if there is work
    from densenet_jax.training.diagnose import NonFiniteError
    from densenet_jax.training.trainer import Interrupted

    try:
        return getattr(commands, command)(config, **options) or 0
    except commands.USER_ERRORS as e:
        return _fail(e)
    except NonFiniteError as e:
        _fail(e)
        return EXIT_DIVERGED
    except Interrupted as e:
        print(f"{e}; the same command goes on from there.")
        return EXIT_INTERRUPTED


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USER_ERROR


def set_up_process() -> None:
    """Quiet logs, and compiled programs kept between runs: a resumed run starts in seconds."""
    # What Orbax logs as errors, the checkpoints say in a sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/densenet_jax/compiled")
    )
