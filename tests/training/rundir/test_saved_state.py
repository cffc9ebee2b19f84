"""Stored states: their names, checkpoints of older versions, and errors for all others."""

import functools
import importlib
import json
import pathlib
import tarfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax.tasks.by_name import find_task
from densenet_jax.training import experiment, run_state, run_steps
from densenet_jax.training import state as states
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import saved_state
from densenet_jax.training.rundir.checkpoints import Checkpoints

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "checkpoints"
PARAMS = {"stem": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "head": {"bias": jnp.ones(3)}}

open_checkpoints = functools.partial(Checkpoints, score=find_task("classification").best.score)


def make_state(optimizer=None, params=PARAMS):
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    state = states.from_variables({"params": params}, optimizer)
    return state.replace(step=jnp.int32(7))


def saved(workdir, state):
    with open_checkpoints(workdir) as checkpoints:
        checkpoints.save(7, state)
    return workdir


def test_only_arrays_are_stored_and_named_by_their_fields():
    tree = saved_state.to_stored(make_state(optax.chain(optax.clip(1.0), optax.adam(0.1))))
    assert set(tree) == {"step", "params", "opt_state", "nonfinite", "order"}  # no batch_stats: {}
    assert set(tree["opt_state"]) == {"count", "mu", "nu"}
    names = saved_state.names(make_state())
    assert sorted(names) == sorted(saved_state.names(saved_state.to_stored(make_state())))


def test_equal_names_are_told_apart():
    optimizer = optax.chain(optax.trace(0.9), optax.trace(0.5))
    assert {"opt_state/trace/head/bias", "opt_state/trace/head/bias1"} <= set(
        saved_state.names(make_state(optimizer))
    )


def test_a_transformation_without_arrays_may_join_the_chain(tmp_path):
    state = make_state()
    clipped = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
    with open_checkpoints(saved(tmp_path, state)) as checkpoints:
        found = checkpoints.resume(make_state(clipped))
    assert int(found.step) == 7
    chex.assert_trees_all_equal(found.params, state.params)
    chex.assert_trees_all_equal_structs(found, make_state(clipped))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_state(optax.adam(0.1)), "has no opt_state/"),
        (make_state(optax.sgd(0.1)), "the configured state has no opt_state/trace/"),
        (
            make_state(params={"stem": PARAMS["stem"], "head": {"bias": jnp.ones(4)}}),
            r"has shape \[3\] in the checkpoint",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, target, message):
    with (
        open_checkpoints(saved(tmp_path, make_state())) as checkpoints,
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoints.resume(target)


def test_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_state, "FORMAT", saved_state.FORMAT + 1)
    saved(tmp_path, make_state())
    monkeypatch.undo()
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"newer version of densenet_jax.*: update"),
    ):
        checkpoints.resume(make_state())


def test_a_run_of_the_first_version_goes_on(tmp_path):
    """Format 0, from before checkpoints had a number: the nested state, with its empty parts."""
    with tarfile.open(GOLDEN / "format0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    config = importlib.import_module("configs.default").get_config()
    config.update(json.loads((tmp_path / "config.json").read_text()))
    setup = experiment.build(config)
    optimizer, _ = run_steps.optimizer(setup, 10, 1.0)
    with Checkpoints(tmp_path, score=setup.task.best.score) as checkpoints:
        state = checkpoints.resume(
            jax.tree.map(jnp.zeros_like, run_state.abstract_state(setup, optimizer))
        )
    assert int(state.step) == 2
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(state.variables)]
    assert sum(np.abs(x).sum() for x in leaves) == pytest.approx(506.37712326656924, rel=1e-12)
    kernel = state.params["transition2"]["conv"]["kernel"]
    assert np.linalg.norm(kernel) == pytest.approx(5.783543109893799, rel=1e-6)
    assert any(np.abs(x).sum() > 0 for x in jax.tree.leaves(state.opt_state))
