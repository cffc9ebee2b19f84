"""SIGTERM and SIGINT ask a run to save its state and stop; a second one ends it at once."""

import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_questions = itertools.count()  # numbered through all runs of a process, as those of a sweep


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or SIGINT came; to be asked once a step.

    A second signal ends the process with 128 + its number, also while the main thread is in a long
    call that lets no handler run, as a compilation is.  Processes of one job agree on the step to
    stop after, whichever of them had the signal; there, a second one does nothing more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # a notebook's, for one: its signals are left alone
        return
    if jax.process_count() > 1:
        # JAX listens for SIGTERM by itself, and tells the other processes.
        old = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            yield lambda: multihost_utils.reached_preemption_sync_point(next(_questions))
        finally:
            signal.signal(signal.SIGINT, old)
        return
    asked = threading.Event()
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def listen():
        """Python writes the number of each signal as it comes, handled or not."""
        count = 0
        while number := ear.recv(1):
            count += number[0] in SIGNALS
            if count > 1:
                os._exit(128 + number[0])

    previous = {number: signal.signal(number, lambda *_: asked.set()) for number in SIGNALS}
    previous_fd = signal.set_wakeup_fd(mouth.fileno())
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield asked.is_set
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        mouth.close()  # which ends the listener
        listener.join()
        ear.close()
