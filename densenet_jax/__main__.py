"""The command `densenet-jax`; `python -m densenet_jax` and `python main.py` do the same."""

import signal
import sys


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    try:
        from densenet_jax import cli  # imported here so that a missing package is reported below

        return cli.main(sys.argv)
    except KeyboardInterrupt:  # while no run handles the signal
        return 128 + signal.SIGINT
    except ModuleNotFoundError as e:
        missing = (e.name or "densenet_jax").partition(".")[0]
        if missing == "densenet_jax":
            raise
        print(
            f"error: the Python package {missing} is not installed. `import densenet_jax` does not "
            "need it, but this command does: `pip install .` in the checkout (or `pip install -r "
            "requirements.txt`) installs everything that it needs.",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
