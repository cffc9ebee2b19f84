"""What is said before the numbers: every weak point of a record, and nothing of a sound one."""

import pytest

from densenet_jax.dossier import remarks
from densenet_jax.dossier.record import BOTH

SPLIT = {"use": "scored here", "name": "test", "groups": 40, "unreadable": 0}
SPLIT |= {"duplicates": 0, "conflicts": 0}


def record(split=None, shared=None, alike=0.1, top1=0.9, count=50, **changes):
    data = {
        "splits": [SPLIT | (split or {})],
        "shared": [
            {"uses": ["training", "scored here"], "images": 0, "groups": 0} | (shared or {})
        ],
        "labels": [{"name": "cat", "cells": [{"known": 100, "count": count}]}],
    }
    rows = [
        {"change": name, "strength": "by 10%", "top1": value}
        for name, value in (("", 0.9), ("noise", 0.9), ("darker", top1))
    ]
    found = {"data": data, "left_out": [], "task": "classification", "calibration": {}}
    found |= {"coverage": {}, "robustness": rows, "maps": {"stages": [{"alike": alike}]}}
    return found | changes


def test_a_sound_record_has_no_remarks():
    assert remarks.about(record(), {}) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (record(split={"use": BOTH}), "also chose the checkpoint"),
        (record(split={"duplicates": 3}), "test has images that equal an earlier one: 3."),
        (record(split={"conflicts": 2}), "images that equal an earlier one of another label: 2."),
        (record(split={"unreadable": 1}), "test has unreadable images: 1."),
        (record(split={"groups": None}), "Groups, such as patients, are unknown"),
        (record(shared={"groups": 4}), "“training” and “scored here” share groups (4)"),
        (record(left_out=["The split is gone"]), "The split is gone"),
        (record(count=7), "fewer than 30 scored examples with or without them: cat (7)"),
        (record(count=98), "cat (2)"),
        (record(calibration=None), "not calibrated"),
        (record(coverage=None), "not finite"),
        (record(top1=0.5), "“darker, by 10%” harms the most: top-1 90.00% becomes 50.00%"),
        (record(alike=0.8), "hardly change if all weights are random (correlation 0.80)"),
        (record(alike=None), "cannot be compared"),
    ],
)
def test_every_weak_point_is_said(found, words):
    (remark,) = remarks.about(found, {})
    assert words in remark
