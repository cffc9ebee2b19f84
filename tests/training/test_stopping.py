"""Signals: the first asks, the second ends the process, whatever it is doing."""

import signal
import subprocess
import sys
import threading

import pytest

from densenet_jax.training.stopping import stop_requests

TWICE = """
import hashlib, os, signal, time
from densenet_jax.training.stopping import stop_requests
with stop_requests() as stop_requested:
    assert not stop_requested()
    os.kill(os.getpid(), signal.{first})
    while not stop_requested():
        time.sleep(0.01)
    print("asked", flush=True)
    os.kill(os.getpid(), signal.{second})
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a call in which no handler runs
"""


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_the_second_signal_ends_the_process(first, second):
    code = TWICE.format(first=first, second=second)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "asked\n"
    assert done.stderr == ""
    assert done.returncode == 128 + signal.Signals[second]


def test_handlers_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests() as stop_requested:
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert not any(t.name == "signals" for t in threading.enumerate())
