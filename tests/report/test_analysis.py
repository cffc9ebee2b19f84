"""The analysis of a model for a report: from configuration and variables to files and page."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from configs import digits
from densenet_jax.report import activation_maps, examine, write_report
from densenet_jax.report.analysis import finite
from densenet_jax.report.predictions import load
from densenet_jax.training import batches, experiment, run_steps
from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states

from .conftest import random_variables


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The directory of a run whose model has random weights."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits.get_config()
    config.model.update(depth=10, growth_rate=4)
    (workdir / "config.json").write_text(config.to_json())
    setup = experiment.build(config)
    variables = jax.device_put(random_variables(setup.model), jax.devices()[0])
    examine(setup, variables, workdir, step=5, ablation_examples=16)
    return workdir, setup, variables


def test_predictions_are_those_of_the_model(examined):
    workdir, setup, variables = examined
    found = load(workdir)
    assert len(found.labels) == 360
    assert (found.data, found.step) == ("digits/test", 5)
    assert found.labels.tolist() == [e["label"] for e in setup.eval_source.examples]
    batch = next(iter(batches.eval_batches(setup)))
    data = setup.config.data
    pixels = (np.asarray(batch["image"]) / 255 - data.mean[0]) / data.std[0]
    logits = np.asarray(jax.jit(setup.model.apply)(variables, pixels.astype(np.float32)))
    agree = logits.argmax(1) == found.classes[: len(logits), 0]
    assert agree.mean() > 0.98  # the others are ties up to rounding


def test_an_evaluation_of_the_same_step_is_reused(examined, tmp_path, monkeypatch):
    workdir, setup, variables = examined
    state = states.from_variables(variables, optax.sgd(0.1))
    state = jax.device_put(state, meshes.replicated(setup.mesh))
    evaluated = run_steps.evaluate(setup, run_steps.eval_step(setup), state)
    evaluated = dataclasses.replace(evaluated, step=5)
    monkeypatch.setattr(batches, "eval_batches", None)
    cam, made = activation_maps.cam, []
    monkeypatch.setattr(activation_maps, "cam", lambda *args: made.append(cam(*args)) or made[0])
    with jax.set_mesh(meshes.make_mesh(data=4)):  # a size that divides the number of pictures
        found = examine(setup, variables, tmp_path, step=5, evaluated=evaluated)
    # Each of several processes must get the whole map, however the mesh is distributed.
    assert made[0].devices() == {jax.local_devices()[0]}
    expected = load(workdir)
    assert (found.data, found.step) == (expected.data, expected.step)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4)
    assert found.shown.tolist() == expected.shown.tolist()


def test_pictures_show_mistakes_and_hits(examined):
    found = load(examined[0])
    assert found.pictures.shape[1:] == (16, 16, 1)
    assert len(found.shown) == len(found.pictures) == len(found.maps)
    mistakes = int((~found.correct[found.shown]).sum())
    assert mistakes == 18
    assert found.shown[:mistakes].tolist() == found.surest_mistakes(18).tolist()


def test_feature_reuse_and_ablation(examined):
    insight = json.loads((examined[0] / "insight.json").read_text())
    assert [np.shape(m) for m in insight["reuse"]] == [(2, 2)] * 3
    assert [np.shape(m) for m in insight["ablation"]] == [(2, 2)] * 3
    assert insight["ablation"][0][1][0] is None
    assert insight["ablation_examples"] == 16
    assert insight["model"]["parameters"] > 0


def test_the_page_shows_ablation_and_pictures(examined):
    text = write_report(examined[0]).read_text(encoding="utf-8")
    assert "Ablation: accuracy without one connection" in text
    assert text.count("data:image/") >= 2 * 18


def test_finite():
    value = {"a": [1, float("nan"), (np.float32("inf"), "x")], "b": None}
    assert finite(value) == {"a": [1, None, [None, "x"]], "b": None}
