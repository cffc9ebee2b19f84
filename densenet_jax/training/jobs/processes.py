"""The processes of a job: they find each other, end together, and fail together.

A process that fails says why and ends; the others, who would wait for it in a collective for ever,
hear of it through the coordinator (the service in process 0 that JAX's processes find each other
by) and end as well, in silence and with the same exit code, so that a scheduler can start the job
again.
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

import jax

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import launchers

logger = logging.getLogger(__name__)
MEETING_SECONDS = 300  # until all processes of a job have found each other
HEARTBEAT_SECONDS = 60  # a process that is not heard of for so long is dead
DAY = 24 * 3600 * 1000  # milliseconds
FAILURE = "densenet_jax/failure"
ORDERLY = (0, 75)  # exit codes that all processes reach by themselves


def join(
    coordinator: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
    *,
    resumable: bool = True,
) -> "Job":
    """Joins the other processes of this one's job, if there are any; before JAX is used.

    Only process 0 prints from then on.

    Args:
      coordinator, num_processes, process_id: from the command line; None: as the launcher says.
      resumable: SIGTERM asks the job to save its state (`stopping`), instead of ending it.

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
        f"{who} could not meet the others at "
        f"{launch.coordinator or 'the address that the launcher gives'}; is that an address of "
        "process 0, with a free port that all can reach, and were all processes started?"
    )
    # JAX would abort with a stack trace.  A wrong flag is to be mended, a lost machine comes back.
    words, code = f"error: {failed} ({MEETING_SECONDS} s)", 2 if coordinator else 1
    late = threading.Timer(MEETING_SECONDS, lambda: (print(words, file=sys.stderr), _leave(code)))
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
            return Job()  # a TPU of one machine
        raise
    except RuntimeError as e:
        raise ConfigError(f"{failed} ({str(e).splitlines()[0]})") from e
    finally:
        late.cancel()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if 2 * cores * launch.local_count < os.cpu_count() and jax.process_index() == 0:
        logger.warning(
            "This process may use %d of %d cores, and decodes its images with them; mpirun needs "
            "--bind-to none, srun --cpus-per-task.",
            cores,
            os.cpu_count(),
        )
    if jax.process_index() != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    return Job()


class Job:
    """This process's place in its job; a context manager around its work.

    Where the process is alone it does nothing but print.
    """

    def __init__(self):
        # The one thing here that JAX does not make public: its key-value store.
        from jax._src.distributed import global_state

        self._client = global_state.client if jax.distributed.is_initialized() else None
        self._over = False
        if self._client is not None:
            self._index, self._count = global_state.process_id, global_state.num_processes
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind, error, _) -> None:
        if error is not None and self._client is not None:
            self._fail(1, f"{self._name()} failed:\n{traceback.format_exc()}")

    def end(self, code: int, message: str = "") -> int:
        """Says what there is to say, once, and ends the job; returns the exit code.

        Args:
          code: of this process. 0, or 75 (interrupted): all others have it, too, and are waited
            for; any other ends them at once.
          message: for standard error.
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
        return f"process {self._index} of {self._count} (on {socket.gethostname()})"

    def _fail(self, code: int, message: str) -> None:
        """Ends this process and all others, and says why unless one of them has done so."""
        self._over = True  # or the watcher would end this process before it has spoken
        try:
            self._client.key_value_set(FAILURE, str(code))
            first = True
        except Exception as e:
            # Another one was first; or the coordinator is gone, and one must speak for all.
            first = "ALREADY_EXISTS" not in str(e) and self._index == 1
        if first:
            print(message, file=sys.stderr, flush=True)
        if self._index == 0:
            time.sleep(2)  # the others hear of it from here
        _leave(code)

    def _watch(self) -> None:
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
    """Lets mpirun ask its processes to stop: it hands SIGUSR1 on, and kills them after a SIGTERM.

    It hands it to their children, too: those that read data inherit that the signal is blocked.
    """

    def ask(*_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, ask)  # where a thread is older than this
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    waiting = threading.Thread(target=lambda: ask(signal.sigwait({signal.SIGUSR1})), daemon=True)
    waiting.start()


def _leave(code: int) -> None:
    """Ends this process, whatever its threads are waiting for."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
