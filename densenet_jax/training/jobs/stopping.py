"""SIGTERM, SIGINT and SIGHUP ask a run to save its state and stop; a second signal ends it at once.

SIGHUP (a lost terminal) never counts as the second signal: the shell and the kernel each send one,
and systemd sends one right after its SIGTERM.  If it is ignored, as under nohup, it stays ignored.
"""

import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

IMPATIENT = (signal.SIGTERM, signal.SIGINT)  # signals that end the process if they come second
# Numbers for JAX's agreement among processes; unique in a process, which may have several runs, as
# in a sweep.
_questions = itertools.count()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal asked to stop; it is called once per step.

    A second SIGTERM or SIGINT ends the process with exit code 128 + its number, even while the main
    thread is in a long call in which no handler can run, such as a compilation.  The processes of a
    job agree on the step to stop after, whichever of them received the signal; there a second
    signal has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can handle signals; a notebook, for one, may run elsewhere.
        yield lambda: False
        return
    signals = list(IMPATIENT)
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup and signal.getsignal(hangup) is not signal.SIG_IGN:
        signals.append(hangup)
    if jax.process_count() > 1:
        # JAX itself handles SIGTERM, and informs the other processes.
        signals.remove(signal.SIGTERM)
        with _handled(signals, lambda *_: signal.raise_signal(signal.SIGTERM)):
            yield lambda: multihost_utils.reached_preemption_sync_point(next(_questions))
        return
    asked = threading.Event()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        """Reads the number of each signal, which Python writes before any handler runs."""
        came = False
        while number := receiver.recv(1):
            if came and number[0] in IMPATIENT:
                os._exit(128 + number[0])
            came = came or number[0] in signals

    with _handled(signals, lambda *_: asked.set()):
        previous_fd = signal.set_wakeup_fd(sender.fileno())
        listener = threading.Thread(target=listen, name="signals", daemon=True)
        listener.start()
        try:
            yield asked.is_set
        finally:
            signal.set_wakeup_fd(previous_fd)
            sender.close()  # ends the listener
            listener.join()
            receiver.close()


@contextmanager
def _handled(signals: Iterable[int], handler: Callable[..., Any]) -> Iterator[None]:
    """Installs a handler for signals while the context is open, then restores the previous ones."""
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
