"""The analysis of a model of several labels or numbers: its answers, thresholds and pictures."""

import json

import jax
import numpy as np
import pytest

from configs import digits
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.report import ReportError, analysis, examine, write_report
from densenet_jax.report.estimates import load
from densenet_jax.training import experiment

from .conftest import random_variables

COUNT = 80


def source(task):
    """Returns digits of which "even" and "large" are asked, or two numbers."""
    found = by_name.load("digits", "test").examples
    digit = np.array([found[i]["label"] for i in range(COUNT)])
    images = np.stack([found[i]["image"] for i in range(COUNT)])
    labels = np.stack([digit % 2 == 0, digit > 4], 1).astype(np.float32)
    if task == "regression":
        labels = np.stack([digit, 100 * digit], 1).astype(np.float32)
    labels[::7, 0] = np.nan
    columns = {"parity": np.where(digit % 2, "odd", "even").tolist()}
    groups = [str(i // 2) for i in range(COUNT)]
    arrays = Arrays(images, labels)
    return Source(arrays, ("a", "b"), "digits", task=task, groups=groups, columns=columns)


@pytest.fixture
def run(tmp_path, monkeypatch, request):
    """A run of a task: its directory, experiment and variables."""
    task, own = request.param, source(request.param)
    monkeypatch.setattr(by_name, "load", lambda *_, **__: own)
    config = digits.get_config()
    config.model.update(depth=10, growth_rate=4)
    config.task, config.augment.mixup = task, 0.0
    if task == "regression":
        config.data.target_mean, config.data.target_std = (4.5, 450.0), (3.0, 300.0)
    setup = experiment.build(config)
    (tmp_path / "config.json").write_text(setup.config.to_json())
    variables = jax.device_put(random_variables(setup.model), jax.devices()[0])
    return tmp_path, setup, variables


@pytest.mark.parametrize("run", ["multilabel"], indirect=True)
def test_several_labels_with_calibration(run):
    workdir, setup, variables = run
    plain = examine(setup, variables, workdir, step=5)
    assert plain.thresholds.tolist() == [0.5, 0.5]
    assert plain.labels.shape == plain.values.shape == (COUNT, 2)
    assert plain.columns["group"].tolist() == [str(i // 2) for i in range(COUNT)]
    assert set(plain.columns["column_parity"]) == {"odd", "even"}
    assert len(plain.pictures) == len(plain.maps) == len(plain.shown) > 0
    assert plain.pictures.shape[1:] == (16, 16, 1)
    record = {"step": 5, "labels": ["a", "b"], "data": "digits/other", "scale": [2.0, 0.5]}
    record |= {"shift": [1.0, 0.0], "thresholds": [0.9, 0.2]}
    (workdir / "calibration.json").write_text(json.dumps(record))
    examine(setup, variables, workdir, step=5)
    found = load(workdir, "multilabel")
    assert found.thresholds.tolist() == [0.9, 0.2]
    assert found.calibrated == "digits/other"
    logits = np.log(plain.values) - np.log1p(-plain.values)
    expected = 1 / (1 + np.exp(-(logits * [2.0, 0.5] + [1.0, 0.0])))
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-5)
    text = " ".join(write_report(workdir).read_text(encoding="utf-8").split())
    assert "calibrated on digits/other" in text
    assert text.count("data:image/") >= 2 * len(found.shown)
    with pytest.raises(ReportError, match="ablation_examples"):
        examine(setup, variables, workdir, step=5, ablation_examples=4)


@pytest.mark.parametrize("run", ["regression"], indirect=True)
def test_numbers_are_in_the_units_of_the_data(run):
    workdir, setup, variables = run
    found = examine(setup, variables, workdir, step=5)
    assert isinstance(found, analysis.Estimates)
    again = load(workdir, "regression")
    np.testing.assert_array_equal(again.values, found.values)
    assert again.values[:, 1].std() > 10 * again.values[:, 0].std()
    assert again.labels[1].tolist() == [again.labels[1, 1] / 100, again.labels[1, 1]]
    assert set(again.shown_for) == {0, 1}
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "Largest errors" in text
    assert "Subgroups" in text
