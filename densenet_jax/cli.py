"""The commands behind main.py."""

import json
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from densenet_jax import config_files
from densenet_jax.configs import default

HELP = """\
usage: python main.py [COMMAND] --config=configs/NAME.py [--workdir=DIR] [--config.key=value ...]

commands
  train      (the default) train, evaluate, checkpoint; started again with the same --workdir
             it resumes at the last checkpoint
  evaluate   --workdir=DIR [--checkpoint=best|latest|STEP]: top-1, top-5 and loss of a run's
             checkpoint over every example of the evaluation split; or of published weights:
             --config=FILE --config.init_from=SOURCE
  predict    IMAGE...: top-5 labels with probabilities for image files, folders, globs, or - for
             standard input; from --workdir=DIR or --weights=SOURCE (densenet121.ra_in1k, a file);
             --cam=DIR writes class activation maps over the images; --format=table|json|csv
  report     --workdir=DIR: writes DIR/report.html again, from a finished or a running run;
             several directories, separated by commas: a page that compares them
  models     a table of every variant: parameters, multiply-adds, published weights

flags
  --config=FILE[:ARGUMENT]   a configuration; configs/*.py say what each does and expects
  --config.KEY=VALUE         another value for one of its keys, see configs/default.py:
                             --config.total_epochs=10, --config.total_steps=100, --config.seed=1,
                             --config.batch_size=128, --config.optimizer.learning_rate=0.05,
                             --config.data.data_dir=DIR, --config.model.dtype=bfloat16,
                             --config.init_from=densenet121.ra_in1k (or a file, or a workdir)
  --workdir=DIR              the run's directory (default: runs/NAME): config.json,
                             metrics.jsonl, checkpoints/
  --checkpoint=WHICH         best (the default), latest, or a step: for evaluate, predict, report

examples
  python main.py --config=configs/digits.py --workdir=runs/digits      # a minute, no download
  python main.py evaluate --workdir=runs/digits
  python main.py predict --workdir=runs/digits --cam=/tmp/maps my/images/*.png
  python main.py predict --weights=densenet121.ra_in1k photo.jpg
  python main.py --config=configs/cifar10.py --config.total_epochs=10
  python main.py --config=configs/densenet121.py:tiny                  # a look before the long run
  python main.py --config=configs/densenet121.py --workdir=runs/121 --config.data.data_dir=DIR
"""

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start again to go on


COMMANDS = ("train", "evaluate", "predict", "report", "models")


class UsageError(ValueError):
    """The command line cannot be understood."""


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    if {"--help", "-h", "-help", "help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    try:
        command, config, options = parse(argv)
    except UsageError as e:
        return fail(e)
    set_up_process()
    from densenet_jax import commands  # after the process is set up, and only if there is work
    from densenet_jax.training.diagnose import NonFiniteError
    from densenet_jax.training.trainer import Interrupted

    try:
        return getattr(commands, command)(config, **options) or 0
    except commands.USER_ERRORS as e:
        return fail(e)
    except NonFiniteError as e:
        fail(e)
        return EXIT_DIVERGED
    except Interrupted as e:
        print(f"{e}; the same command goes on from there.")
        return EXIT_INTERRUPTED


def fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USER_ERROR


def parse(argv: Sequence[str]) -> tuple[str, ml_collections.ConfigDict, dict[str, str]]:
    """Returns the command, its configuration and its other options.

    Raises:
      UsageError: an unknown command, flag, key or file.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's directory", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step", flag_values=values)
    flags.DEFINE_string("weights", None, "weights to predict with", flag_values=values)
    flags.DEFINE_string("cam", None, "folder for class activation maps", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json", "csv"], "of answers", flag_values=values)
    argv = config_files.with_located(argv)
    config_file = _value(argv, "config")
    workdir = _value(argv, "workdir")
    if config_file is None and workdir and (pathlib.Path(workdir) / "config.json").is_file():
        config_file = str(pathlib.Path(workdir) / "config.json")  # the run's own
    check_config_file(config_file)
    if config_file and config_file.endswith(".json"):
        argv = [a for a in argv if not a.startswith(("--config=", "-config="))]
        stored = from_json(config_file)
        config_flags.DEFINE_config_dict("config", stored, flag_values=values, sys_argv=list(argv))
    else:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    try:
        _, *words = values(list(argv))
        config = values.config
    except Exception as e:  # absl and ml_collections raise many kinds, and the file is code
        raise UsageError(_explain(e)) from e
    command, *rest = words or ["train"]
    if command not in COMMANDS:
        raise UsageError(f"There is no command {command!r}; there are {', '.join(COMMANDS)}.")
    if rest and command != "predict":
        raise UsageError(f"{command} does not take {rest[0]!r}; flags look like --workdir=DIR.")
    if command == "models":
        return command, config, {}
    if command == "report" and workdir and "," in workdir:
        return command, config, {"workdir": workdir, "checkpoint": values.checkpoint}
    if command == "predict":
        options = {"images": rest, "weights": values.weights, "cam": values.cam}
        options |= {"style": values.format, "checkpoint": values.checkpoint, "workdir": workdir}
        if not values.weights and not workdir:
            raise UsageError("predict needs --workdir=DIR of a run, or --weights=SOURCE.")
        if values.weights or config is not None:
            return command, config, options
    if config is None and workdir and command != "train":
        raise UsageError(f"{workdir} is not the directory of a run: it has no config.json.")
    if config is None:
        raise UsageError(
            "--config is missing; to begin: python main.py --config=configs/digits.py "
            "(python main.py --help lists the commands)."
        )
    options = {"workdir": workdir or f"runs/{pathlib.Path(config_file.split(':')[0]).stem}"}
    if command in ("evaluate", "report"):
        options["checkpoint"] = values.checkpoint
    if command == "evaluate" and config.init_from and not workdir:
        # The weights themselves, and not into the directory of a run.
        options = {"workdir": options["workdir"] + "-init_from", "checkpoint": ""}
    return command, config, options


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Returns a flag's value before flags are parsed: `--flag=value` or `--flag value`."""
    for i, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == flag:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def check_config_file(config_file: str | None) -> None:
    """Raises UsageError, naming those that exist, if there is no such configuration."""
    path = (config_file or "").split(":")[0]
    if path and not pathlib.Path(path).is_file():
        there = ", ".join(f"configs/{name}.py" for name in config_files.names())
        raise UsageError(f"There is no configuration {path!r}; there are {there}.")


def _explain(error: Exception) -> str:
    """Returns the one sentence that matters in what absl and ml_collections raise."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback" in text:  # raised inside a configuration file
        return text.strip().splitlines()[-1].partition(": ")[2]
    # ml_collections quotes its quotations: KeyError('"\\'seeed\\'\\nDid you mean ...').
    plain = text.replace("\\n", "\n").replace("\\", "").replace('"', "'")
    lines = [line.strip("'") for line in plain.strip().splitlines()]
    message = ". ".join(lines[:2]) or type(error).__name__
    if isinstance(error, KeyError | AttributeError):
        message = f"the configuration has no key {message}"
    return f"{message} (python main.py --help shows the flags, configs/default.py the keys)"


def from_json(path: str) -> ml_collections.ConfigDict:
    """Returns a run's config.json as a locked configuration, with the types of the defaults."""
    try:
        stored = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        config = default.get_config().lock()
        config.update(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{path} is not the configuration of a run: {e}") from None
    return config


def set_up_process() -> None:
    """Quiet logs, and compiled programs kept between runs: a resumed run starts in seconds."""
    # What Orbax logs as errors, the checkpoints say in a sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/densenet_jax/compiled")
    )
