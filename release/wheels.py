"""Builds the wheels: one for all platforms, and those that have the CPU kernels compiled.

    python release/wheels.py dist                   # needs g++ and aarch64-linux-gnu-g++ on x86-64
    python release/wheels.py dist --platform any    # or only one of them

The libraries run with every JAX from the one that they are compiled with on (XLA promises this of
the interface that they use), so compile them with the oldest of requirements.txt. The platform's
name is the one that `auditwheel show` finds for g++ 12 of Debian 12.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from densenet_jax.models.cpu import building, prebuilt  # noqa: E402

# {platform of the wheel: (machine, compiler)}
PLATFORMS = {
    "any": ("", []),
    "manylinux_2_34_x86_64": ("x86_64", ["x86_64-linux-gnu-g++", "-s"]),
    "manylinux_2_34_aarch64": ("aarch64", ["aarch64-linux-gnu-g++", "-s"]),
}
FILES = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt")


def build(directory: pathlib.Path, platform: str) -> pathlib.Path:
    """Returns a wheel, built from a copy: the checkout stays clean, and leaves nothing in it.

    Args:
      directory: for the wheel.
      platform: one of `PLATFORMS`.

    Raises:
      building.NativeError: the compiler fails or is not installed.
    """
    machine, compiler = PLATFORMS[platform]
    with tempfile.TemporaryDirectory() as name:
        source = pathlib.Path(name)
        ignored = shutil.ignore_patterns("__pycache__", prebuilt.FOLDER.name)
        shutil.copytree(ROOT / "densenet_jax", source / "densenet_jax", ignore=ignored)
        for file in FILES:
            shutil.copy(ROOT / file, source)
        # As in a clone without symbolic links, where the link is a file with its target.
        (source / "configs").write_text("densenet_jax/configs")
        libraries = source / prebuilt.FOLDER.relative_to(ROOT)
        libraries.mkdir()
        for level, needed in prebuilt.LEVELS.get(machine, {}).items():
            path, products = libraries / prebuilt.name(level), prebuilt.products(needed)
            building.compile_library(compiler, path, level, products)
        words = [
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            f"--wheel-dir={directory}",
        ]
        if machine:
            words += [f"--config-settings=--build-option=--plat-name={platform}"]
        subprocess.run([sys.executable, "-m", "pip", *words, name], check=True)
    return max(directory.glob(f"*-{platform}.whl"), key=lambda path: path.stat().st_mtime)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path, help="for the wheels")
    parser.add_argument("--platform", choices=PLATFORMS, nargs="+", default=list(PLATFORMS))
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    for platform in args.platform:
        try:
            print(build(args.directory.resolve(), platform))
        except building.NativeError as error:
            print(f"error: {platform}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
