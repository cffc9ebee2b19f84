"""The command line: commands and flags are a table, in `table`."""

import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

import ml_collections

from densenet_jax.cli import config_files
from densenet_jax.cli.invocation import program
from densenet_jax.cli.parsing import UsageError, parse
from densenet_jax.cli.table import COMMANDS, PROCESS_FLAGS, help_text

__all__ = ["COMMANDS", "main", "parse", "set_up_process"]

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start again to go on
# Of a disk that is full, read-only, broken or another user's: nothing that a traceback explains.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    if {"--help", "-h", "-help", "help"} & set(argv[1:]):
        called = program(argv[0])
        print(help_text(called, config_files.names(), config_files.defaults()), end="")
        return 0
    try:
        command, config, options = parse(argv)
    except UsageError as e:
        return _fail(e)
    set_up_process()
    from densenet_jax.training.errors import ConfigError
    from densenet_jax.training.jobs import launchers, processes  # after the process is set up

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


def _run(command: str, config: ml_collections.ConfigDict | None, options: dict) -> tuple[int, str]:
    """Runs a command; returns the exit code, and what is to be said to the user."""
    from densenet_jax.cli import commands  # only if there is work: it imports everything
    from densenet_jax.training.nonfinite import NonFiniteError
    from densenet_jax.training.rundir.progress import safely
    from densenet_jax.training.trainer import Interrupted

    try:
        return getattr(commands, command)(config, **options) or 0, ""
    except commands.USER_ERRORS as e:
        return EXIT_USER_ERROR, f"error: {e}"
    except NonFiniteError as e:
        return EXIT_DIVERGED, f"error: {e}"
    except OSError as e:
        if e.errno not in STORAGE_ERRORS:
            raise
        what = f"{e.filename} cannot be written or read: " if e.filename else ""
        return EXIT_USER_ERROR, (
            f"error: {what}{e.strerror}. Mend the disk, make room on it, or name another folder; "
            "then give the same command again."
        )
    except Interrupted as e:
        safely(print, f"{e}; the same command goes on from there.", flush=True)
        return EXIT_INTERRUPTED, ""


def _say(code: int, message: str) -> int:
    if message:
        print(message, file=sys.stderr)
    return code


def _fail(error: Exception) -> int:
    return _say(EXIT_USER_ERROR, f"error: {error}")


def _unraisable(hook: Callable, error: "sys.UnraisableHookArgs") -> None:
    """Leaves out that a write failed, which TensorStore tells an event loop that Orbax closed."""
    if str(error.exc_value) != "Event loop is closed":
        hook(error)


def set_up_process() -> None:
    """Quiet logs, and compiled programs kept between runs: a resumed run starts in seconds."""
    # What Orbax logs as errors, the checkpoints say in a sentence.
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:  # of an earlier command line
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    import jax  # whose variable would come too late: the configuration has imported it

    if jax.config.jax_compilation_cache_dir is None:
        folder = os.path.expanduser("~/.cache/densenet_jax/compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    # A simulated device that waits for the others in a collective holds a thread of XLA's pool,
    # which has one a core: with none left to compute, all would wait for ever.
    simulated = re.search(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if simulated:
        threads = int(simulated[1]) + (os.cpu_count() or 1)
        os.environ.setdefault("NPROC", str(threads))  # what XLA takes for the number of cores
