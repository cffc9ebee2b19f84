"""Builds the CPU kernels' library with the system's C++ compiler and keeps it.

The folder `src` holds the source.  The library is kept in the user's cache folder, under a name
made of all it depends on, so that it is built only once on a machine, by whichever process needs it
first.  Its SHA-256 is kept beside it: a library that a power cut or a full disk has damaged is
built again.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import jaxlib

from densenet_jax.atomic_files import flush
from densenet_jax.terminal import say
from densenet_jax.user_cache import user_cache

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SOURCES = pathlib.Path(__file__).parent / "src"
COMPILE_SECONDS = 300
OPTIONS = ("-std=c++20", "-O3", "-fPIC", "-pipe")
# {type of the operands of products: options of the library for it}
PRODUCTS: dict[str, tuple[str, ...]] = {"float32": (), "bfloat16": ("-DBFLOAT16",)}
NATIVE = "native"  # the instructions of this machine


class NativeError(Exception):
    """The library cannot be built or loaded here; the message says why."""


def cache_directory() -> pathlib.Path:
    """Returns the folder of libraries, `native` in `user_cache`."""
    return pathlib.Path(user_cache()) / "native"


def build(directory: pathlib.Path, products: str = "float32") -> pathlib.Path:
    """Returns the library for this machine, compiled into a directory unless it is there.

    Of any number of processes that do so at once, one compiles and the others wait for it.

    Args:
      directory: of libraries.
      products: one of `PRODUCTS`.

    Raises:
      NativeError: there is no compiler, it fails, or others may write into the directory.
    """
    if fcntl is None:
        raise NativeError("they can be built on Linux and macOS only.")
    compiler = _compiler()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(directory)
        path = directory / f"kernels-{_key(compiler, products)}.so"
        if not _is_whole(path):
            with _alone(directory) as alone:
                for folder in directory.iterdir() if alone else ():
                    if folder.is_dir():  # of a build that was killed
                        shutil.rmtree(folder, ignore_errors=True)
                if not _is_whole(path):  # no other process has built it in the meantime
                    say(
                        f"Compiling the kernels for this processor with {compiler[0]}: "
                        "once on a machine, some ten seconds.",
                        file=sys.stderr,
                    )
                    compile_library(compiler, path, products=products)
    except OSError as error:
        raise NativeError(
            f"{directory} cannot be used ({error}); set XDG_CACHE_HOME to a folder of yours."
        ) from None
    return path


def _compiler() -> list[str]:
    """Returns the command that CXX names, with its arguments (`ccache g++`), or c++."""
    wanted = os.environ.get("CXX") or "c++"
    try:
        command = [wanted] if shutil.which(wanted) else shlex.split(wanted)
    except ValueError as error:
        raise NativeError(f"CXX={wanted!r} cannot be read: {error}.") from None
    found = shutil.which(command[0]) if command else None
    if found is None:
        raise NativeError("there is no C++ compiler; install g++ or clang, or set CXX.")
    return [found, *command[1:]]


def _digest_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".sha256")


def _digest(path: pathlib.Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _is_whole(path: pathlib.Path) -> bool:
    """Returns whether a library is there, and is what the compiler made."""
    try:
        _check_owner(path)
        return _digest_file(path).read_bytes() == _digest(path)
    except FileNotFoundError:
        return False


def compile_library(
    compiler: list[str],
    path: pathlib.Path,
    instructions: str = NATIVE,
    products: str = "float32",
) -> None:
    """Compiles the sources side by side and links them.

    Args:
      compiler: command with its arguments.
      path: of the library; its SHA-256 is put beside it.
      instructions: as -march takes them.
      products: one of `PRODUCTS`.

    Raises:
      NativeError: the compiler fails.
    """
    options = (*OPTIONS, *PRODUCTS[products], f"-march={instructions}")
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as name:
        folder = pathlib.Path(name)
        made, objects, commands = folder / path.name, [], []
        includes = ("-isystem", jax.ffi.include_dir())
        for source in sorted(SOURCES.glob("*.cc")):
            objects.append(str(folder / f"{source.stem}.o"))
            commands.append([*compiler, *options, *includes, "-c", str(source), "-o", objects[-1]])
        _run(commands, COMPILE_SECONDS, name)
        _run([[*compiler, *options, "-shared", *objects, "-o", str(made)]], COMPILE_SECONDS, name)
        if not made.exists():
            raise NativeError(f"{compiler[0]} succeeds, but writes no library.")
        made.chmod(0o700)
        _digest_file(made).write_bytes(_digest(made))
        for file in (_digest_file(made), made):
            flush(file)
            os.replace(file, path.parent / file.name)
        flush(path.parent)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[bool]:
    """Holds the lock of a directory; yields False where there are no locks, or after a long wait.

    The kernel releases the lock of a process that ends.  One that was stopped must not stop others.
    """
    descriptor, until = os.open(directory, os.O_RDONLY), time.monotonic() + COMPILE_SECONDS
    alone = False
    try:
        while not alone and time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks: the file is renamed when it is complete
                break
        yield alone
    finally:
        os.close(descriptor)


def _check_owner(path: pathlib.Path) -> None:
    """Raises NativeError if other users could have written a file: its code runs as this user."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(f"other users can write {path}; delete it.")
    for folder in path.absolute().parents:  # who can rename one can put another in its place
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise NativeError(
                f"every user can write {folder}, which has {path.name}; run chmod o-w {folder}."
            )


def _key(compiler: Sequence[str], products: str) -> str:
    """Returns a hash of what the library depends on: sources, compiler, headers, processor."""
    parts = [*_run([[*compiler, "--version"]], 30), jaxlib.__version__, platform.machine()]
    options = *OPTIONS, *PRODUCTS[products]
    return digest(*parts, *options, NATIVE, *compiler, processor(), *sources())


def sources() -> list[str]:
    """Returns the texts of the sources."""
    return [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]


def digest(*parts: str) -> str:
    """Returns a short hash of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """Returns the processor's model and instruction sets, as far as the system says."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(commands: list[list[str]], timeout: float, temporary: str | None = None) -> list[str]:
    """Runs commands side by side and returns what they print.

    Each has a session of its own, so that nothing of it is left when it fails or takes too long.

    Args:
      commands: program and arguments of each.
      timeout: seconds that all may take.
      temporary: folder for their temporary files.
    """
    environment = {**os.environ, "TMPDIR": temporary} if temporary else None
    until, processes, printed = time.monotonic() + timeout, [], []
    try:
        for command in commands:
            processes.append(_start(command, environment))
        for command, process in zip(commands, processes, strict=True):
            out, err = process.communicate(timeout=max(0.0, until - time.monotonic()))
            if process.returncode:
                said = (err.strip() or f"exit code {process.returncode}").splitlines()
                raise NativeError(f"{command[0]} fails: {said[0]}")
            printed.append(out)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{commands[0][0]} fails: {error}") from None
    finally:
        for process in processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return printed


def _start(command: list[str], environment: dict[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
