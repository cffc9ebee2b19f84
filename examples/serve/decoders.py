"""Decodes images in processes of their own, each of which can be ended.

Some files keep a decoder busy for minutes or make it take any amount of memory, and no thread can
be stopped.  A process that takes too long is killed and replaced, and so is one that has crashed.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

# Lets the scripts run from a checkout as well as with the package installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from densenet_jax.data.reading import host
from densenet_jax.weights import Preprocessing

MAX_PIXELS = 25_000_000  # of an image; 75 MB when decoded
MEMORY = 1 << 30  # bytes that a process may take in addition to what it has at its start
START_SECONDS = 60.0
WAIT_SECONDS = 10.0  # a request that has waited this long for a process is rejected


class Refused(Exception):
    """An image that is not decoded; its arguments are the status of HTTP and the reason."""


class Decoders:
    """A number of processes that decode; a context manager that ends them.

    Attributes:
      processes: all of them, busy or not.
    """

    def __init__(self, spec: dict[str, Any], count: int, seconds: float):
        """Starts the processes.

        Args:
          spec: see `engines.Engine`.
          count: number of processes.
          seconds: largest time for an image.
        """
        _start_forks()
        self._idle: asyncio.Queue[Decoder] = asyncio.Queue()
        self.processes = [Decoder(spec, seconds) for _ in range(count)]
        for process in self.processes:
            self._idle.put_nowait(process)
        self._threads = concurrent.futures.ThreadPoolExecutor(count, "decoder")

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.end()
        self._threads.shutdown()

    async def __call__(self, body: bytes) -> np.ndarray:
        """Returns the image in a file, cropped for the model, [H, W, C] in the type that it takes.

        Raises:
          Refused: it cannot be decoded (see `decode`), takes too long, or all processes are busy.
        """
        try:
            process = await asyncio.wait_for(self._idle.get(), WAIT_SECONDS)
        except TimeoutError:
            raise Refused(503, "The server is busy; try again in a moment.") from None
        work = asyncio.get_running_loop().run_in_executor(self._threads, process, body)
        # Also when the request is cancelled, the process is busy until the work is done.
        work.add_done_callback(lambda _: self._idle.put_nowait(process))
        return await asyncio.shield(work)


def _start_forks() -> None:
    """Starts the process that forks the others, so that each starts in milliseconds.

    It imports what they need once; they also run the main script, whose imports are those of the
    module `server`.  Before Python 3.13 it gets no search path but that of the environment.
    """
    forkserver.set_forkserver_preload([__name__, "server"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Decoder:
    """One process; called with a file it returns the image, see `Decoders`."""

    def __init__(self, spec: dict[str, Any], seconds: float):
        self._spec, self._seconds, self._ended = spec, seconds, False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._spec), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS):
            raise RuntimeError(f"No process for decoding has started in {START_SECONDS:g} s.")
        self._pipe.recv_bytes()

    def __call__(self, body: bytes) -> np.ndarray:
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        self._replace_dead()  # the system has killed it while it was idle
        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            self._pipe.send_bytes(body)
            answer = self._pipe.recv_bytes()
        except (OSError, EOFError):  # it was killed: by the timer, or by the system
            answer = b""
        finally:
            timer.cancel()
            if late.is_set():
                self._process.join()
            self._replace_dead()
        if not answer:
            why = f"within {self._seconds:g} s" if late.is_set() else "in the available memory"
            raise Refused(422, f"The image could not be decoded {why}.")
        if answer[:1] != b"\0":
            raise Refused(*json.loads(answer[1:]))
        given = Preprocessing(**self._spec["preprocessing"])
        shape = (given.image_size, given.image_size, self._spec["channels"])
        return np.frombuffer(answer[1:], given.dtype).reshape(shape)

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def _replace_dead(self) -> None:
        """Starts another process if this one has ended, unless the server ends."""
        if not self._ended and not self.alive:
            self._pipe.close()
            self._start()

    def end(self) -> None:
        """Ends the process."""
        self._ended = True
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, spec: dict[str, Any]) -> None:
    """Answers files with images, or with a reason, until the pipe is closed; runs in a process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of the whole group; the server ends this
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, ValueError):  # Linux only
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(b"ready")
        while True:
            body = pipe.recv_bytes()
            try:
                answer = b"\0" + decode(body, spec).tobytes()
            except Refused as refused:
                answer = b"\1" + json.dumps(refused.args).encode()
            except Exception as error:  # out of memory, or a fault of a library
                reason = f"The image cannot be decoded ({type(error).__name__})."
                answer = b"\1" + json.dumps((415, reason)).encode()
            pipe.send_bytes(answer)


def decode(body: bytes, spec: dict[str, Any]) -> np.ndarray:
    """Decodes and crops an image for the model, [H, W, C] in the type that it takes.

    Args:
      body: an image file.
      spec: see `engines.Engine`.

    Raises:
      Refused: 413 if the header declares too many pixels (checked before decoding); 415 if the
        body is not a readable image.
    """
    given = spec["preprocessing"]
    try:
        height, width = host.dimensions(body)
        if height * width > MAX_PIXELS:
            raise Refused(
                413, f"The image has {width} x {height} pixels, more than {MAX_PIXELS:,}."
            )
        return host.eval_crop(
            body,
            channels=spec["channels"],
            narrow=True,
            **Preprocessing(**given).reading,
        )
    except host.ImageError as error:
        detail = f"The body is not a readable image of the formats that predict reads: {error}."
        raise Refused(415, detail) from None
