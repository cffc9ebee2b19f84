"""How this process was started, so that what it advises can be typed as it stands."""

import pathlib
import shutil
import sys


def program(argv0: str | None = None) -> str:
    """Returns `densenet-jax`, `python main.py` or `python -m densenet_jax`.

    Args:
      argv0: the first word of the command line as Python has it; None: this process's.
    """
    argv0 = sys.argv[0] if argv0 is None else argv0
    path = pathlib.Path(argv0)
    if path.name == "__main__.py":
        return "python -m densenet_jax"
    if path.suffix == ".py":
        return f"python {argv0}"
    # An installed command gets its whole path, however it was typed.
    return path.name if shutil.which(path.name) == argv0 else argv0
