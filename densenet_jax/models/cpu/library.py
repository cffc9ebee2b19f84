"""The CPU kernels' library: compiled on first use by the system's C++ compiler, kept, registered.

The folder `src` holds the source.  What is built lies in the user's cache directory under a name
made of all it depends on, so that it is built once on a machine, whatever processes ask for it.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from densenet_jax.models.cache import cache_directory

SOURCES = pathlib.Path(__file__).parent / "src"
STAGES = ("Forward1x1", "Forward3x3", "Backward1x1", "Backward3x3")
BLOCKS = ("BlockForward", "BlockBackward", "BlockEvaluate")
POOLING = ("MaxPool", "MaxPoolBackward", "AveragePool", "AveragePoolBackward")
FUNCTIONS = (*STAGES, *BLOCKS, "Convolve", "ConvolveBackward", *POOLING)
COMPILE_SECONDS = 300
OPTIONS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared")


class NativeError(Exception):
    """The library cannot be built or loaded here; why."""


@functools.cache
def available() -> bool:
    """Returns whether the kernels can be called, building them if need be; says once if not."""
    try:
        target("Forward1x1")
    except NativeError as error:
        logging.getLogger(__name__).warning("CPU kernels are off, plain JAX runs: %s", error)
        return False
    return True


def target(function: str) -> str:
    """Returns the name under which XLA knows one of `FUNCTIONS`.

    Raises:
      NativeError: the library cannot be built or loaded.
    """
    return _register()[function]


@functools.cache
def _register() -> dict[str, str]:
    path = build(cache_directory("native"))
    try:
        library = ctypes.CDLL(str(path))
        functions = {name: getattr(library, name) for name in FUNCTIONS}
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be loaded ({error}); delete it.") from None
    # The name holds the source's hash: a compiled program in a cache finds its own or none.
    names = {name: f"densenet_jax_{name}_{path.stem[-16:]}" for name in FUNCTIONS}
    for name, function in functions.items():
        jax.ffi.register_ffi_target(names[name], jax.ffi.pycapsule(function), platform="cpu")
    return names


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the type of a result."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def call(
    function: str,
    arrays: tuple,
    results: tuple,
    aliases: dict[int, int] | None = None,
    **numbers: int | float,
) -> list[jax.Array]:
    """Runs one of `FUNCTIONS`, on arrays as float32.

    Args:
      function: one of `FUNCTIONS`.
      arrays: its arguments.
      results: the types of what it returns, see `array`.
      aliases: {number of an array: number of the result that takes its place in memory}.
      **numbers: further arguments that do not depend on data.
    """
    run = jax.ffi.ffi_call(
        target(function), results, vmap_method="sequential", input_output_aliases=aliases
    )
    # As the library expects them: whole numbers have 64 bits, others are doubles.
    attributes = {
        name: np.int64(number) if isinstance(number, int) else np.float64(number)
        for name, number in numbers.items()
    }
    return list(run(*(array.astype(jnp.float32) for array in arrays), **attributes))


def forget() -> None:
    """Lets the next call look for the library again."""
    available.cache_clear()
    _register.cache_clear()


def build(directory: pathlib.Path) -> pathlib.Path:
    """Returns the library for this machine, compiled into a directory unless it is there.

    Of any number of processes that do so at once, one compiles and the others wait for it.

    Raises:
      NativeError: there is no compiler, it fails, or others may write into the directory.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise NativeError("there is no C++ compiler; install g++ or clang, or set CXX.")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(directory)
        path = directory / f"kernels-{_key(compiler)}.so"
        if not path.exists():
            with _alone(directory):
                _compile(compiler, path)
        _check_owner(path)
    except OSError as error:
        raise NativeError(f"{directory} cannot be used ({error}).") from None
    return path


def _compile(compiler: str, path: pathlib.Path) -> None:
    """Compiles the library, unless another process has in the meantime."""
    if path.exists():
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = pathlib.Path(folder) / path.name
        includes = ("-isystem", jax.ffi.include_dir())
        source = str(SOURCES / "kernels.cc")
        _run([compiler, *OPTIONS, *includes, source, "-o", str(made)], timeout=COMPILE_SECONDS)
        os.replace(made, path)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a directory; without it where there are no locks, or after a long wait.

    The kernel releases the lock of a process that ends.  One that was stopped must not stop others.
    """
    descriptor, until = os.open(directory, os.O_RDONLY), time.monotonic() + COMPILE_SECONDS
    try:
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks: the file is renamed when it is complete
                break
        yield
    finally:
        os.close(descriptor)


def _check_owner(path: pathlib.Path) -> None:
    """Raises NativeError if other users could have written a file: its code runs as this user."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(f"others than this user can write {path}; delete it.")


def _key(compiler: str) -> str:
    """Returns a hash of what the library depends on: sources, compiler, headers, processor."""
    parts = [_run([compiler, "--version"], timeout=30), jaxlib.__version__, platform.machine()]
    parts += [*OPTIONS, compiler, _processor()]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Returns the processor's model and instruction sets, as far as the system says."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(command: list[str], timeout: int) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]} fails: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise NativeError(f"{command[0]} fails: {said[0]}")
    return done.stdout
