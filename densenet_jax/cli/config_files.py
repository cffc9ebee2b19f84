"""Configuration files by name: the user's own, or those that come with the package."""

import pathlib
from collections.abc import Sequence

PACKAGED = pathlib.Path(__file__).parent.parent / "configs"


def names() -> list[str]:
    """Returns the names of the packaged configurations: ["cifar10", "densenet121", ...]."""
    return sorted(path.stem for path in PACKAGED.glob("*.py") if path.stem[0] != "_")


def defaults() -> str:
    """Returns the path of default.py, which documents every key: relative in a checkout."""
    here = "configs/default.py"
    return here if pathlib.Path(here).is_file() else str(PACKAGED / "default.py")


def locate(config: str) -> str:
    """Returns a value of --config, FILE[:ARGUMENT], with FILE replaced by an existing path.

    A file that exists takes precedence.  Otherwise `configs/digits.py`, `digits.py` and `digits`
    all mean the packaged configuration, so that the documented commands work in any directory.
    An unknown file is returned unchanged.
    """
    file, colon, argument = config.partition(":")
    name = file.removeprefix("configs/").removesuffix(".py")
    if not pathlib.Path(file).is_file() and name in names():
        file = str(PACKAGED / f"{name}.py")
    return f"{file}{colon}{argument}"


def with_located(argv: Sequence[str]) -> list[str]:
    """Returns a command line in which `locate` has been applied to the value of --config."""
    located, is_value = [], False
    for word in argv:
        flag, equals, value = word.partition("=")
        if is_value:
            word = locate(word)
        elif flag in ("--config", "-config") and equals:
            word = f"{flag}={locate(value)}"
        is_value = word in ("--config", "-config")
        located.append(word)
    return located
