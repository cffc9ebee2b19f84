"""The first signal asks a run to stop, a second one ends the process; a hang-up only asks."""

import signal
import subprocess
import sys
import threading

import pytest

from densenet_jax.training.jobs.stopping import stop_requests

TWICE = """
import hashlib, os, signal, time
from densenet_jax.training.jobs.stopping import stop_requests
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
with stop_requests() as stop_requested:
    assert not stop_requested()
    os.kill(os.getpid(), signal.{first})
    while not stop_requested():
        time.sleep(0.01)
    print("asked", flush=True)
    for _ in range({hangups}):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.{second})
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a call in which no handler runs
"""


@pytest.mark.parametrize(
    ("first", "second", "hangups"),
    [("SIGTERM", "SIGINT", 0), ("SIGINT", "SIGTERM", 1), ("SIGHUP", "SIGTERM", 2)],
)
def test_the_second_signal_ends_the_process_but_no_hangup_does(first, second, hangups):
    code = TWICE.format(first=first, second=second, hangups=hangups)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "asked\nstill here\n"
    assert done.stderr == ""
    assert done.returncode == 128 + signal.Signals[second]


def test_handlers_are_put_back():
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(s) for s in signals]
    with stop_requests() as stop_requested:
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
    assert [signal.getsignal(s) for s in signals] == before
    assert not any(t.name == "signals" for t in threading.enumerate())


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop_requested:
            signal.raise_signal(signal.SIGHUP)
            assert not stop_requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
