"""The command line; `table` lists its commands and flags."""

import errno
import functools
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

import densenet_jax
from densenet_jax import terminal
from densenet_jax.cli import config_files
from densenet_jax.cli.invocation import program
from densenet_jax.cli.parsing import UsageError, parse
from densenet_jax.cli.table import COMMANDS, PROCESS_FLAGS, help_text
from densenet_jax.user_cache import user_cache

__all__ = ["COMMANDS", "main", "parse", "set_up_process"]

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command continues the run
# Errors of a disk that is full, read-only, broken or another user's; a traceback would not help.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


def main(argv: Sequence[str]) -> int:
    """Runs a command line and returns the exit code.

    Args:
      argv: the words of the command line, first the program's name.
    """
    if {"--help", "-h", "-help", "help"} & set(argv[1:]):
        called, known = program(argv[0]), [word for word in argv[1:] if word in COMMANDS]
        text = help_text(called, config_files.names(), config_files.defaults(), *known[:1])
        print(text, end="")
        return 0
    if {"--version", "-version"} & set(argv[1:]):
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax")]
        print(f"densenet_jax {densenet_jax.__version__} ({', '.join(versions)})")
        return 0
    try:
        command, config, options = parse(argv)
    except UsageError as e:
        return _fail(e)
    set_up_process()
    from densenet_jax.training.errors import ConfigError
    from densenet_jax.training.jobs import launchers, processes  # JAX needs `set_up_process` first

    process = {flag: options.pop(flag) for flag in PROCESS_FLAGS if flag in options}
    try:
        if not process:
            alone = launchers.is_alone(command, os.environ)
            return _say(*_run(command, config, options)) if alone else 0
        job = processes.join(**process, resumable=command == "train")
    except ConfigError as e:
        return _fail(e)
    with job:
        return job.end(*_run(command, config, options))


def _run(
    command: str, config: ml_collections.ConfigDict | None, options: dict[str, Any]
) -> tuple[int, str]:
    """Runs a command; returns the exit code, and the message for standard error ("": none)."""
    from densenet_jax.cli import commands  # imported late, as it imports the whole package
    from densenet_jax.training.nonfinite import NonFiniteError
    from densenet_jax.training.rundir.progress import safely
    from densenet_jax.training.trainer import Interrupted

    try:
        return getattr(commands, command)(config, **options) or 0, ""
    except commands.USER_ERRORS as e:
        return EXIT_USER_ERROR, _error(e)
    except NonFiniteError as e:
        return EXIT_DIVERGED, _error(e)
    except OSError as e:
        if e.errno not in STORAGE_ERRORS:
            raise
        what = f"{terminal.printable(e.filename)} cannot be written or read: " if e.filename else ""
        return EXIT_USER_ERROR, (
            f"error: {what}{e.strerror}. Repair the disk, free some space on it, or choose another "
            "folder; then run the same command again."
        )
    except Interrupted as e:
        safely(terminal.say, f"{e}; the same command continues from there.")
        return EXIT_INTERRUPTED, ""


def _say(code: int, message: str) -> int:
    """Prints a message to standard error, unless it is empty; returns the exit code."""
    if message:
        print(message, file=sys.stderr)
    return code


def _fail(error: Exception) -> int:
    return _say(EXIT_USER_ERROR, _error(error))


def _error(error: Exception) -> str:
    """Returns the message of an exception for standard error, in printable lines."""
    return "error: " + "\n".join(terminal.lines(error))


def _unraisable(hook: Callable[..., Any], error: "sys.UnraisableHookArgs") -> None:
    """Calls a hook for exceptions that cannot be raised, except for one that means nothing.

    After a failed write TensorStore reports to an event loop that Orbax has closed already.
    """
    if str(error.exc_value) != "Event loop is closed":
        hook(error)


def set_up_process() -> None:
    """Sets up logging and the cache of compiled programs, with which runs resume in seconds."""
    # Orbax logs as errors what `Checkpoints` reports in one sentence.
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:  # once per process
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)
    terminal.set_up()
    # The configuration has imported JAX already, so its environment variable would come too late.
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = os.path.join(user_cache(), "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    # A simulated device that waits for the others in a collective occupies a thread of XLA's pool,
    # which has one thread per core.  With no thread left to compute, all would wait for ever.
    simulated = re.search(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if simulated:
        threads = int(simulated[1]) + (os.cpu_count() or 1)
        os.environ.setdefault("NPROC", str(threads))  # XLA reads the number of cores from it
