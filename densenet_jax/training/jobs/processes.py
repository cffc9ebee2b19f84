"""The processes of a job: they find each other, end together, and fail together.

A process that fails prints the reason and ends.  The others would wait for it forever in a
collective operation.  They are informed by the coordinator, the service in process 0 through which
JAX's processes find each other, and end silently with the same exit code, so that a scheduler can
restart the job.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any, NoReturn

import jax

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import launchers

logger = logging.getLogger(__name__)
MEETING_SECONDS = 300  # the time in which all processes of a job must have connected
HEARTBEAT_SECONDS = 60  # a process that is silent for so long counts as dead
DAY = 24 * 3600 * 1000  # milliseconds
FAILURE = "densenet_jax/failure"  # key in the coordinator: the exit code of a failed process
ORDERLY = (0, 75)  # exit codes with which all processes end by themselves


def join(
    coordinator: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
    *,
    resumable: bool = True,
) -> "Job":
    """Connects this process to the others of its job, if there are any.

    It must be called before JAX is used.  Afterwards only process 0 prints to standard output.

    Args:
      coordinator: value of --coordinator; None: as the launcher says.
      num_processes: value of --num_processes, likewise.
      process_id: value of --process_id, likewise.
      resumable: whether SIGTERM asks the job to save its state (`stopping`) instead of ending it.

    Returns:
      this process's place in the job.

    Raises:
      ConfigError: the processes cannot find each other.
    """
    if "OMPI_COMM_WORLD_RANK" in os.environ and resumable:
        _take_sigusr1_for_sigterm()
    launch = launchers.detect(os.environ, coordinator, num_processes, process_id)
    if launch is None:
        return Job()
    jax.config.update("jax_enable_preemption_service", resumable)
    who = "This process" if launch.index is None else f"Process {launch.index} of {launch.count}"
    failed = (
        f"{who} could not connect to the others at "
        f"{launch.coordinator or 'the address that the launcher gives'}; check that this is an "
        "address of process 0 with a free port that all machines can reach, and that all processes "
        "were started."
    )

    def give_up() -> None:
        # 2: a flag must be corrected; 1: a scheduler may try again, as a lost machine comes back.
        print(f"error: {failed} It has waited {MEETING_SECONDS} s.", file=sys.stderr)
        _leave(2 if coordinator else 1)

    # JAX would abort with a stack trace when its own time is up.
    late = threading.Timer(MEETING_SECONDS, give_up)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.count,
            launch.index,
            launchers.local_device_ids(launch, os.environ),
            initialization_timeout=2 * MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as e:
        if launch == launchers.Launch() and "should be defined" in str(e):
            return Job()  # a TPU on a single machine
        raise
    except RuntimeError as e:
        raise ConfigError(f"{failed} JAX reports: {str(e).splitlines()[0]}") from e
    finally:
        late.cancel()
    all_cores = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
    if 2 * cores * launch.local_count < all_cores and jax.process_index() == 0:
        logger.warning(
            "This process may use only %d of %d cores, which slows down the decoding of images; "
            "add --bind-to none to mpirun, or --cpus-per-task=N to srun.",
            cores,
            all_cores,
        )
    if jax.process_index() != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    return Job()


class Job:
    """This process's place in its job; a context manager around its work.

    An exception that leaves the context ends all processes of the job.  If the process is alone,
    the context does nothing, and `end` only prints.
    """

    def __init__(self) -> None:
        """Starts to watch for failures of other processes, if `jax.distributed` is initialised."""
        # The only private part of JAX that is used here: its key-value store.
        from jax._src.distributed import global_state

        self._client: Any = global_state.client if jax.distributed.is_initialized() else None
        self._over = False
        if self._client is not None:
            self._index, self._count = global_state.process_id, global_state.num_processes
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if error is not None and self._client is not None:
            self._fail(1, f"{self._name()} failed:\n{traceback.format_exc()}")

    def end(self, code: int, message: str = "") -> int:
        """Ends the job and returns the exit code; the message is printed by one process only.

        Args:
          code: this process's exit code.  With 0 and 75 (interrupted) all processes end with the
            same code, so it waits for them; any other code ends them at once.
          message: is printed to standard error; "" for none.
        """
        if self._client is None:
            if message:
                print(message, file=sys.stderr)
            return code
        if code not in ORDERLY:
            self._fail(code, message)
        if message and self._index == 0:
            print(message, file=sys.stderr)
        self._client.wait_at_barrier("densenet_jax/end", DAY)
        self._over = True
        jax.distributed.shutdown()
        return code

    def _name(self) -> str:
        """Returns "process 1 of 4 (on HOST)"."""
        return f"process {self._index} of {self._count} (on {socket.gethostname()})"

    def _fail(self, code: int, message: str) -> NoReturn:
        """Ends this process and all others; prints the message unless another failed earlier."""
        self._over = True  # otherwise the watcher could end this process before it has printed
        try:
            self._client.key_value_set(FAILURE, str(code))
            first = True
        except Exception as e:
            # Either another process failed first, or the coordinator is gone; then process 1
            # prints for all.
            first = "ALREADY_EXISTS" not in str(e) and self._index == 1
        if first:
            print(message, file=sys.stderr, flush=True)
        if self._index == 0:
            time.sleep(2)  # the others learn of it from the coordinator in this process
        _leave(code)

    def _watch(self) -> None:
        """Ends this process when another one fails; runs in a thread."""
        while not self._over:
            try:
                code = int(self._client.blocking_key_value_get(FAILURE, DAY))
            except Exception as e:
                if self._over:
                    return
                if "DEADLINE_EXCEEDED" in str(e):
                    continue
                if self._index == 1:
                    print("process 0 cannot be reached any more", file=sys.stderr, flush=True)
                _leave(1)
            if not self._over:
                if self._index == 0:
                    time.sleep(2)
                _leave(code)


def _take_sigusr1_for_sigterm() -> None:
    """Treats SIGUSR1 as SIGTERM, so that mpirun can ask its processes to stop.

    mpirun forwards SIGUSR1, but on SIGTERM it kills its processes.  It forwards the signal to their
    children, too; the processes that read data inherit that the signal is blocked.
    """

    def ask(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    # For threads that were started earlier, where the signal is not blocked.
    signal.signal(signal.SIGUSR1, ask)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    waiting = threading.Thread(target=lambda: ask(signal.sigwait({signal.SIGUSR1})), daemon=True)
    waiting.start()


def _leave(code: int) -> NoReturn:
    """Ends this process and its children at once, whatever its threads are waiting for."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
