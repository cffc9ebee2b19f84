"""The record of thresholds returns as it was, and only for its own labels."""

import json

import numpy as np
import pytest

from densenet_jax.scores import thresholds
from densenet_jax.scores.labels import ScoresError
from densenet_jax.scores.threshold_record import Thresholds

NAN = np.nan
NAMES = ("edema", "effusion", "fracture")


def table():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < 0.3).astype(float)
    return (rng.random((200, 3)) + targets).astype(np.float32) / 2, targets


def test_a_record_returns_from_json_as_it_was():
    p, targets = table()
    targets[:, 2] = 0
    record = Thresholds.of(p, targets, NAMES, "sensitivity=0.9", "chest/validation")
    assert record.thresholds[2] is None
    assert record.reached[0]["sensitivity"] >= 0.9
    assert Thresholds.from_json(record.to_json(), NAMES, "thresholds.json") == record
    at = Thresholds.from_json(record.to_json(), NAMES, "thresholds.json").thresholds
    assert thresholds.confusion(p, targets, at) == list(record.reached)  # to the last bit
    with pytest.raises(ScoresError, match="2 names for 3 labels"):
        Thresholds.of(p, targets, NAMES[:2], "f1", "")


def text(**changes):
    record = json.loads(Thresholds.of(*table(), NAMES, "f1", "chest/validation").to_json())
    return json.dumps({k: v for k, v in {**record, **changes}.items() if v != "absent"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(labels=["edema", "mass", "fracture"]), "label 1 is 'mass', the model's 'effusion'"),
        (text(labels=["effusion", "edema", "fracture"]), "label 0 is 'effusion'"),
        (text(labels=["edema"]), "has 1 labels and the model 3"),
        (text(labels="edema"), "has no labels"),
        (text(format=2), "has the format 2; this version reads format 1"),
        (text(thresholds=[0.1, 0.2]), "each label needs one threshold"),
        (text(thresholds=[0.1, 0.2, "0.3"]), "each label needs one threshold"),
        (text(thresholds=[0.1, 0.2, True]), "each label needs one threshold"),
        (text(thresholds=[0.1, 0.2, NAN]), "each label needs one threshold"),
        (text(thresholds=[0.1, 0.2, 10**999]), "each label needs one threshold"),
        (text(thresholds=0.5), "each label needs one threshold"),
        (text(reached=[]), "each label needs one threshold"),
        (text(reached=[1, 2, 3]), "each label needs one threshold"),
        (text(rule=3), "is not a record of thresholds"),
        (text(split="absent"), "is not a record of thresholds"),
        (text(format="absent"), "is not a record of thresholds"),
        (text(more=1), "is not a record of thresholds"),
        ("", "is not a record of thresholds"),
        ("[]", "is not a record of thresholds"),
        ("[" * 100_000, "is not a record of thresholds"),
        ("null", "is not a record of thresholds"),
    ],
)
def test_records_of_others_are_refused(content, message):
    with pytest.raises(ScoresError, match=f"^thresholds.json.*{message}"):
        Thresholds.from_json(content, NAMES, "thresholds.json")
