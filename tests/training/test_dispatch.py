"""Several steps per dispatch give the same run as single steps, even after interruptions."""

import os
import signal

import jax
import numpy as np
import pytest

from densenet_jax.training import dispatch, loop, trainer
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import recorder
from tests.training.test_loop import STEPS, params, records, small_config

MANY = {"steps_per_dispatch": 4, "checkpoint_every_steps": 7}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single")
    loop.train_and_evaluate(small_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("many")
    loop.train_and_evaluate(small_config(**MANY), workdir)
    return workdir


def test_dispatches_end_at_multiples_of_their_length_and_where_something_is_due():
    found = dispatch.spans(range(3, 14), 4, lambda step: step == 6)
    assert [list(span) for span in found] == [[3, 4], [5, 6], [7, 8], [9, 10, 11, 12], [13]]
    assert list(dispatch.spans(range(5, 5), 4, lambda _: False)) == []


def test_many_steps_in_a_call_are_the_steps_of_single_calls(single, many):
    assert [r["step"] for r in records(many) if r["split"] == "train"] == [*range(1, STEPS + 1)]
    for one, other in zip(records(single), records(many), strict=True):
        assert one.keys() == other.keys()
        assert [one[k] for k in ("step", "split")] == [other[k] for k in ("step", "split")]
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    for a, b in zip(params(single, small_config()), params(many, small_config()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_stopped_in_a_dispatch_it_ends_it_and_resumes_to_the_bit(many, tmp_path, monkeypatch):
    original = recorder.Recorder.add

    def signal_at_five(self, step, *rest):
        original(self, step, *rest)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recorder.Recorder, "add", signal_at_five)
    with pytest.raises(trainer.Interrupted, match="after step 5"):
        loop.train_and_evaluate(small_config(**MANY), tmp_path)
    monkeypatch.undo()
    loop.train_and_evaluate(small_config(**MANY), tmp_path)
    assert records(tmp_path) == records(many)
    for a, b in zip(params(tmp_path, small_config()), params(many, small_config()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_step_follows_too_many_bad_ones():
    def step(state, batch):
        bad = batch > 2
        nonfinite = jax.numpy.where(bad, state.nonfinite + 1, 0)
        state = state.replace(step=state.step + 1, nonfinite=nonfinite)
        return state, {"loss": batch, "nonfinite": nonfinite}

    run = dispatch.many_steps(step, lambda arrays, rows: arrays[rows[0]], 6, nonfinite_limit=2)
    zero = jax.numpy.int32(0)
    empty = dict.fromkeys(("params", "batch_stats", "opt_state"))
    state = trainer.TrainState(step=zero, nonfinite=zero + 0, order=zero + 0, **empty)
    rows = np.arange(6, dtype=np.int32)[:, None]
    state, metrics = run(state, {"arrays": np.arange(6) % 5, "rows": rows, "count": 6})
    assert int(state.step) == 5
    assert metrics["nonfinite"].tolist() == [0, 0, 0, 1, 2, 0]


def test_images_that_are_not_on_the_device_are_refused():
    with pytest.raises(ConfigError, match=r"--config\.data\.in_memory=True"):
        loop.experiment.build(small_config(**{**MANY, "data.in_memory": False}))
