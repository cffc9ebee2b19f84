"""The command with which this process was started, so that printed commands can be copied."""

import pathlib
import shutil
import sys


def program(argv0: str | None = None) -> str:
    """Returns "densenet-jax", "python main.py" or "python -m densenet_jax".

    Args:
      argv0: the first word of a command line, as in `sys.argv`; None: that of this process.
    """
    argv0 = sys.argv[0] if argv0 is None else argv0
    path = pathlib.Path(argv0)
    if path.name == "__main__.py":
        return "python -m densenet_jax"
    if path.suffix == ".py":
        return f"python {argv0}"
    # For an installed command argv0 is its whole path, even if only its name was typed.
    return path.name if shutil.which(path.name) == argv0 else argv0
