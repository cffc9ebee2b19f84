"""calibration.json belongs to a checkpoint and to the labels of the run."""

import json

import numpy as np
import pytest

from densenet_jax.configs import default
from densenet_jax.evaluation import calibrate
from densenet_jax.scores.labels import ScoresError
from densenet_jax.tasks.by_name import find_task
from densenet_jax.training.errors import CheckpointError
from densenet_jax.training.rundir import run_outputs


def config(task="multilabel", loss=""):
    found = default.get_config()
    found.task, found.loss = task, loss
    return found


def fitted(rule="sensitivity=0.9"):
    """Returns the record of two labels, whose logits are five times too large. One is absent."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 2))
    labels = (rng.random((400, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    labels[:, 1] = 0
    found = {"logits": 5 * logits, "label": labels}
    task = find_task("multilabel")
    return calibrate.fit(task, found, ("a", "b"), rule=rule, data="it/validation", step=7)


def test_what_calibrate_finds_is_what_predictions_use(tmp_path):
    record = fitted()
    run_outputs.write(tmp_path, record)
    (tmp_path / "classes.json").write_text('["a", "b"]')
    outputs = run_outputs.read(tmp_path, config(), 7)
    assert outputs.scale[0] == pytest.approx(0.2, rel=0.3)
    assert (outputs.scale[1], outputs.thresholds[1]) == (1.0, 0.5)
    assert record["uncalibrated"] == ["b"]
    assert record["after"]["loss"][0] < record["before"]["loss"][0]
    assert record["reached"][0]["sensitivity"] >= 0.9
    assert outputs.thresholds[0] == record["reached"][0]["threshold"]


def test_the_calibration_of_another_checkpoint_is_not_used_and_this_is_said(tmp_path, caplog):
    run_outputs.write(tmp_path, fitted())
    assert run_outputs.read(tmp_path, config(), 8).scale == ()
    assert "is of step 7, not of step 8" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [1.0, float("nan")]},
        {"thresholds": ["x", 1]},
        {"thresholds": [0.1, 10**400]},
        {"thresholds": [0.1, None]},
        {"thresholds": [0.1, True]},
        {"scale": [1.0] * 3},
        {"labels": None},
        {"step": "7"},
    ],
)
def test_damaged_calibrations_are_refused(tmp_path, change):
    (tmp_path / "calibration.json").write_text(json.dumps({**fitted(), **change}))
    with pytest.raises(CheckpointError, match=r"calibration.json is damaged; remove it"):
        run_outputs.read(tmp_path, config(), 7)


def test_calibrations_of_other_labels_are_refused(tmp_path):
    run_outputs.write(tmp_path, fitted())
    (tmp_path / "classes.json").write_text('["a", "c"]')
    with pytest.raises(
        CheckpointError, match="other labels than this run's: label 1 was 'b' and is 'c'"
    ):
        run_outputs.read(tmp_path, config(), 7)


def test_without_a_calibration_a_run_answers_as_its_loss_says(tmp_path):
    assert run_outputs.read(tmp_path, config("classification"), 1).activation == "softmax"
    separate = config("classification", "binary_cross_entropy")
    assert run_outputs.read(tmp_path, separate, 1).activation == "sigmoid"


def test_tasks_without_probabilities_or_thresholds_are_refused():
    found = {"logits": np.zeros((4, 2)), "label": np.zeros((4, 2))}
    options = {"data": "it/validation", "step": 1}
    with pytest.raises(ScoresError, match="a regression has none"):
        calibrate.fit(find_task("regression"), found, "ab", rule=None, **options)
    with pytest.raises(ScoresError, match="--thresholds is for several labels"):
        calibrate.fit(find_task("classification"), found, "ab", rule="youden", **options)
