"""SIGTERM, SIGINT and SIGHUP ask a run to save its state and stop; a second one ends it at once.

SIGHUP, of a lost terminal, is no second one: shell and kernel each send it, and systemd sends it
right after its SIGTERM.  Where it is ignored, as under nohup, it stays so.
"""

import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

IMPATIENT = (signal.SIGTERM, signal.SIGINT)
_questions = itertools.count()  # numbered through all runs of a process, as those of a sweep


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a signal to stop came; to be asked once a step.

    A second SIGTERM or SIGINT ends the process with 128 + its number, also while the main thread is
    in a long call that lets no handler run, as a compilation is.  Processes of one job agree on the
    step to stop after, whichever of them had the signal; there, a second one does nothing more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # a notebook's, for one: its signals are left alone
        return
    signals = list(IMPATIENT)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    if jax.process_count() > 1:
        # JAX listens for SIGTERM by itself, and tells the other processes.
        signals.remove(signal.SIGTERM)
        with _handled(signals, lambda *_: signal.raise_signal(signal.SIGTERM)):
            yield lambda: multihost_utils.reached_preemption_sync_point(next(_questions))
        return
    asked = threading.Event()
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def listen():
        """Python writes the number of each signal as it comes, handled or not."""
        came = False
        while number := ear.recv(1):
            if came and number[0] in IMPATIENT:
                os._exit(128 + number[0])
            came = came or number[0] in signals

    with _handled(signals, lambda *_: asked.set()):
        previous_fd = signal.set_wakeup_fd(mouth.fileno())
        listener = threading.Thread(target=listen, name="signals", daemon=True)
        listener.start()
        try:
            yield asked.is_set
        finally:
            signal.set_wakeup_fd(previous_fd)
            mouth.close()  # which ends the listener
            listener.join()
            ear.close()


@contextmanager
def _handled(signals: Iterable[int], handler: Callable) -> Iterator[None]:
    """Handles signals, and puts back what handled them before."""
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
