"""Parsing of a command line into the command, its configuration and its options."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from densenet_jax.cli import config_files, suggestions
from densenet_jax.cli.invocation import program
from densenet_jax.cli.table import COMMANDS, FLAGS, SHORT
from densenet_jax.configs import default
from densenet_jax.training.rundir import saved_config as runs_config


class UsageError(ValueError):
    """The command line is not valid."""


def parse(argv: Sequence[str]) -> tuple[str, ml_collections.ConfigDict | None, dict[str, Any]]:
    """Parses a command line.

    Args:
      argv: the words of the command line, first the program's name.

    Returns:
      the command's name; the configuration, or None if there is none; and the options, the keyword
      arguments of the function of `commands` (see `table.Command`).

    Raises:
      UsageError: a command, flag, key or file does not exist, or a necessary one is missing.
    """
    argv = config_files.with_located([SHORT.get(word, word) for word in argv])
    config_file, workdirs = _value(argv, "config"), _values(argv, "workdir")
    workdir = workdirs[0] if workdirs else None
    if config_file is None and workdir and (pathlib.Path(workdir) / "config.json").is_file():
        config_file = str(pathlib.Path(workdir) / "config.json")  # a run stores its configuration
    values, words, config = _read(argv, config_file)
    name, *words = words or ["train"]
    if name not in COMMANDS:
        near = suggestions.nearest(name, COMMANDS)
        raise UsageError(f"There is no command {name!r}{near} There are {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if words and not command.words:
        raise UsageError(f"{name} does not take {words[0]!r}; flags look like --workdir=DIR.")
    for flag in FLAGS:
        if values[flag].present and flag not in command.flags:
            users = [c for c in COMMANDS if flag in COMMANDS[c].flags]
            raise UsageError(f"{name} does not take --{flag}; {', '.join(users)} can.")
    if values["checkpoint"].present and values["weights"].present:
        raise UsageError("--checkpoint is one of a run, --workdir=DIR; --weights has none.")
    options = {flag: values[flag].value for flag in command.flags}
    for flag in command.flags:
        if choices := FLAGS[flag].choices.get(name):
            options[flag] = options[flag] or choices[0]
            if options[flag] not in choices:
                raise UsageError(
                    f"--{flag}={options[flag]}: {name} takes {', '.join(choices[:-1])} or "
                    f"{choices[-1]}."
                )
    if command.words:
        options["words"] = words
    if command.needs:
        options["workdir"] = workdir
    if command.several_runs:
        options["more"] = workdirs[1:]
    elif len(workdirs) > 1:
        raise UsageError(f"{name} takes one --workdir, but there are {len(workdirs)}.")
    if command.needs == "config":
        options["name"] = pathlib.Path((config_file or "").split(":")[0]).stem
    _check_needs(program(argv[0]), name, config, options)
    return name, config, options


def _check_needs(
    called: str, name: str, config: ml_collections.ConfigDict | None, options: dict[str, Any]
) -> None:
    """Raises UsageError if a command lacks its configuration, run or weights."""
    needs, workdir = COMMANDS[name].needs, options.get("workdir")
    if workdir and options.get("weights"):
        raise UsageError(
            f"{name} takes --workdir={workdir} or --weights={options['weights']}, not both."
        )
    if needs == "source" and not (options["weights"] or workdir):
        raise UsageError(f"{name} needs --workdir=DIR of a run, or --weights=SOURCE.")
    if config is not None or not needs or options.get("weights"):
        return
    if needs == "run" and options["words"]:
        return
    if workdir and name != "train":
        raise UsageError(f"{workdir} is not the directory of a run: it has no config.json.")
    raise UsageError(
        f"--config is missing; for example: {called} --config=configs/digits.py "
        f"({called} --help lists the commands)."
    )


def _read(
    argv: Sequence[str], config_file: str | None
) -> tuple[flags.FlagValues, list[str], ml_collections.ConfigDict | None]:
    """Returns the flags, the words without dashes, and the configuration of a command line."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's directory", flag_values=values)
    for name, flag in FLAGS.items():
        define: Callable[..., Any] = flags.DEFINE_string if flag.value else flags.DEFINE_bool
        default = flag.default if flag.value else False
        define(name, default, flag.about, flag_values=values)
    _check_config_file(config_file)
    if config_file and config_file.endswith(".json"):
        argv = [a for a in argv if not a.startswith(("--config=", "-config="))]
        try:
            stored = runs_config.load(config_file)
        except ValueError as e:
            raise UsageError(str(e)) from None
        config_flags.DEFINE_config_dict("config", stored, flag_values=values, sys_argv=list(argv))
    else:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    try:
        _, *words = values(list(argv))
        return values, words, values.config
    except flags.UnrecognizedFlagError as e:
        if e.flagname.startswith("config."):
            raise UsageError(_explain(e, argv)) from e
        text = suggestions.flag(e.flagname, ("workdir", "config", *FLAGS))
        raise UsageError(f"{text} ({program(argv[0])} --help shows the flags)") from e
    except Exception as e:  # of many types; and the configuration file is code
        raise UsageError(_explain(e, argv)) from e


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Returns a flag's first value before flags are parsed; None if it is absent."""
    return next(iter(_values(argv, flag)), None)


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """Returns all values of a flag before flags are parsed: `--flag=value` or `--flag value`."""
    found = []
    for i, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == flag and (equals or i + 1 < len(argv)):
            found.append(value if equals else argv[i + 1])
    return found


def _check_config_file(config_file: str | None) -> None:
    """Raises UsageError, which lists the packaged configurations, if the file does not exist."""
    path = (config_file or "").split(":")[0]
    if path and not pathlib.Path(path).is_file():
        there = [f"configs/{name}.py" for name in config_files.names()]
        near = suggestions.nearest(path, there)
        raise UsageError(f"There is no configuration {path!r}{near} There are {', '.join(there)}.")


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """Returns a readable message for an exception of absl or ml_collections."""
    where = f"({program(argv[0])} --help shows the flags, {config_files.defaults()} the keys)"
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback" in text:  # the exception was raised in a configuration file
        return text.strip().splitlines()[-1].partition(": ")[2]
    typed = [word.lstrip("-").partition("=")[0] for word in argv if word.startswith("-")]
    keys = [name.removeprefix("config.") for name in typed if name.startswith("config.")]
    unknown = [key for key in keys if key not in {option.key for option in default.OPTIONS}]
    # A configuration may have keys of its own: the one that the exception names comes first.
    unknown.sort(key=lambda key: key.rpartition(".")[2] not in text)
    if unknown and isinstance(error, KeyError | AttributeError | TypeError | flags.Error):
        return f"{suggestions.key(unknown[0])} {where}"
    lines = [line.strip() for line in text.strip().splitlines()]
    return f"{'. '.join(lines[:2]) or type(error).__name__} {where}"
