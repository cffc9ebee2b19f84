"""Waiting for data counts only while it keeps the next step from running."""

import subprocess
import sys
import threading
import time

import pytest

from densenet_jax.training.rundir.data_wait import DataWait


class Clock:
    """A clock that moves only when it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Result:
    """The result of a step, which becomes ready when the test says so."""

    def __init__(self):
        self.there = threading.Event()

    def is_ready(self):
        return self.there.is_set()


def run(batches, finish_at):
    """Returns the seconds waited by three steps.

    Args:
      batches: times at which the loop has batch 0, 1 and 2.
      finish_at: times at which step 0, 1 and 2 are finished; None: after the last batch.
    """
    clock, results = Clock(), [Result() for _ in batches]
    wait = DataWait(clock)

    def source():
        for had in batches:
            for i, at in enumerate(finish_at):
                if wait.finished == i and at is not None and at <= had:
                    clock.now = at
                    results[i].there.set()
                    while wait.finished == i:
                        time.sleep(0.001)
            clock.now = had
            yield had

    steps = iter(results)
    for _ in wait.timed(source()):
        wait.started(next(steps))
    for result in results:
        result.there.set()
    return wait.take()


@pytest.mark.parametrize(
    ("batches", "finish_at", "expected"),
    [
        pytest.param((0, 5, 10), (1, 6, None), 4 + 4, id="a slow source"),
        pytest.param((0, 0, 0), (3, 6, None), 0, id="a fast source"),
        pytest.param((0, 3, 6), (3, 6, None), 0, id="batches gathered behind the steps"),
        pytest.param((0, 1, 7), (2, 5, None), 2, id="steps under way for a while"),
        pytest.param((4, 4, 4), (5, 6, None), 4, id="before the first step"),
    ],
)
def test_only_time_without_a_step_under_way_counts(batches, finish_at, expected):
    assert run(batches, finish_at) == expected


def test_a_failed_step_is_no_longer_under_way():
    class Failed:
        def is_ready(self):
            raise RuntimeError("out of memory")

    wait = DataWait(Clock())
    for _ in wait.timed(range(1)):
        wait.started(Failed())
    while not wait.finished:
        time.sleep(0.001)
    assert wait.take() == 0


STOPPED = """
import sys
import jax, jax.numpy as jnp
from densenet_jax.training.rundir.data_wait import DataWait

step = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda i, x: jnp.tanh(x @ x * 1e-3), x))
x, wait = jnp.ones((700, 700)), DataWait()
step(x).block_until_ready()
for batch in wait.timed(range(100)):
    wait.started(step(x))
    if batch == 2:
        sys.exit(7)
"""


def test_a_process_that_ends_amid_its_steps_ends_as_it_says():
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, b"")
