"""The command `densenet-jax`, which `python -m densenet_jax` and `python main.py` are as well."""

import signal
import sys


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    try:
        from densenet_jax import cli  # here, where a package that it needs may turn out missing

        return cli.main(sys.argv)
    except KeyboardInterrupt:  # where there is no run to save
        return 128 + signal.SIGINT
    except ModuleNotFoundError as e:
        missing = (e.name or "densenet_jax").partition(".")[0]
        if missing == "densenet_jax":
            raise
        print(
            f"error: the Python package {missing} is not installed. `import densenet_jax` can do "
            "without it, this command cannot: `pip install .` in the checkout (or `pip install -r "
            "requirements.txt`) installs all that it needs.",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
