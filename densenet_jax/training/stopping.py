"""SIGTERM and SIGINT ask a run to save its state and stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or SIGINT came; a second signal acts at once."""
    received = []
    previous = {}

    def handler(number, frame):
        received.append(number)
        for signum, old in previous.items():
            signal.signal(signum, old)

    for signum in (signal.SIGTERM, signal.SIGINT):
        try:
            previous[signum] = signal.signal(signum, handler)
        except ValueError:  # not the main thread, as in a notebook's: leave signals alone
            break
    try:
        yield lambda: bool(received)
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
