"""Predictions of scaling: time of all-reduces, collectives of a program, stored cases."""

import importlib.util
import json
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

HLO = """\
  %all-reduce.1 = (f32[64]{0:T(128)}, f32[]{:T(128)}) all-reduce(%a, %b), to_apply=%add
  %all-reduce.2 = (f32[3,3,8,4]{3,2,1,0}, f32[8]{0}) all-reduce(%c, %d), to_apply=%add
  %all-reduce-start.3 = bf16[100000]{0} all-reduce-start(%e), to_apply=%add
  %all-reduce-done.3 = bf16[100000]{0} all-reduce-done(%all-reduce-start.3)
  ROOT %all-gather.4 = f32[16,4]{1,0} all-gather(%f), dimensions={0}
"""


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", BENCHMARKS / "scaling.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    path = sys.path.copy()
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture(scope="module")
def stored(scaling):
    return json.loads(scaling.FIGURES.read_text())


def test_one_device_does_not_communicate(scaling):
    v5e, h200 = scaling.MACHINES["v5e"], scaling.MACHINES["h200"]
    assert scaling.all_reduce_seconds(v5e, (1, 1), 1e9) == 0
    assert scaling.all_reduce_seconds(h200._replace(hop=0), (1,), 1e9) == 0


def test_a_line_a_ring_a_torus_and_a_switch(scaling):
    machine = scaling.Machine(flops=1, memory=1, link=10, hop=0, ring=4)
    seconds = scaling.all_reduce_seconds
    line, ring = seconds(machine._replace(ring=5), (4,), 40), seconds(machine, (4,), 40)
    assert line == 2 * 40 * 3 / 4 / 10  # there and back, 3 of 4 parts over one link
    assert ring == line / 2  # a ring sends in both directions
    # With a second axis, each axis starts with half of the data, and both work at the same time.
    assert seconds(machine, (4, 4), 40) == pytest.approx(ring / 2 * (1 + 1 / 4))
    assert seconds(machine, (4, 1), 40) == ring
    switch = machine._replace(ring=0)
    assert seconds(switch, (4,), 40) == line
    assert seconds(switch._replace(hop=1), (4,), 0) == seconds(switch._replace(hop=1), (99,), 0)
    # The smallest message goes to the end of a line, or half way round a ring, and back.
    assert seconds(machine._replace(hop=1, ring=5), (4,), 0) == 2 * 3
    assert seconds(machine._replace(hop=1), (4,), 0) == 2 * 2


def test_collectives_are_classified_by_their_content(scaling):
    assert scaling.collectives(HLO) == {
        "statistics": [1, 4 * 65],
        "gradients": [2, 4 * (288 + 8) + 2 * 100_000],
        "all-gather": [1, 4 * 64],
    }


def test_efficiency_is_computation_over_computation_and_communication(scaling):
    figures = {
        "machine": "h200",
        "shape": [8],
        "flops": 989e12 / 2,
        "moved_bytes": 4.8e12 / 4,
        "collectives": {"gradients": [2, 8e9], "all-gather": [1, 0]},
    }
    machine = scaling.MACHINES["h200"]
    work, talk = scaling.predict(figures)
    assert work == 0.5  # the slower of arithmetic and memory
    assert talk == pytest.approx(3 * 2 * machine.hop + 2 * 8e9 * 7 / 8 / machine.link)
    assert scaling.efficiency(figures, (8,)) == pytest.approx(work / (work + talk))
    assert scaling.efficiency(figures, (2,)) > scaling.efficiency(figures, (8,))


def test_stored_cases_fulfil_the_goals_of_scaling(scaling, stored):
    """At most 4 all-reduces and 95 % at 256 chips, with statistics of each device."""
    lines = scaling.table(stored).splitlines()
    assert len(lines) == 2 + len(stored)
    assert {line.count("|") for line in lines} == {10}
    each = [case for case in stored.values() if case["groups"] == "devices"]
    assert all(sum(n for n, _ in case["collectives"].values()) <= 4 for case in each)
    (pod,) = (case for case in each if case["shape"] == [16, 16])
    assert scaling.efficiency(pod, (16, 16)) >= 0.95
