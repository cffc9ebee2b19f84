"""Learning-rate curves against their closed forms, and durations in every unit."""

import math

import numpy as np
import pytest

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.schedules import Units, make_schedule

UNITS = Units(total_steps=1000, steps_per_epoch=12.5, batch_size=32)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("4 epochs", 50),
        ("1 epoch", 12),
        ("0.5epochs", 6),
        ("70 steps", 70),
        ("6400 examples", 200),
        ("1e3 examples", 31),
        ("0.3", 300),
        (1 / 3, 333),
        (1, 1000),
        ("0", 0),
    ],
)
def test_durations(duration, steps):
    assert UNITS.steps(duration) == steps


@pytest.mark.parametrize(
    "duration", ["5", 1.5, -0.1, "-1 epochs", "5 hours", "", "nan", "inf", "epochs", "1e99 steps"]
)
def test_what_is_no_duration_is_named(duration):
    with pytest.raises(ConfigError, match=r"optimizer.warmup is .*; it must be a duration: '5 ep"):
        UNITS.steps(duration, "config.optimizer.warmup")


def curve(name: str, steps, **options) -> list[float]:
    schedule = make_schedule(name, learning_rate=0.4, total_steps=100, **options)
    return [float(schedule(step)) for step in steps]


def test_one_cycle_rises_from_a_25th_to_the_peak_and_falls_to_nothing():
    got = curve("one_cycle", (0, 15, 30, 65, 100), warmup_steps=30)
    low = 0.4 / 25
    np.testing.assert_allclose(
        got, [low, (low + 0.4) / 2, 0.4, 0.4 * (1 + 4e-6) / 2, 0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("warmup", [0, 100])
def test_one_cycle_needs_both_slopes(warmup):
    with pytest.raises(ConfigError, match="needs steps for both its rise and its fall"):
        curve("one_cycle", (0,), warmup_steps=warmup)


def test_warmup_stable_decay_is_a_trapezium():
    got = curve("warmup_stable_decay", (0, 5, 10, 50, 80, 90, 100), warmup_steps=10, decay_steps=20)
    np.testing.assert_allclose(got, [0, 0.2, 0.4, 0.4, 0.4, 0.2, 0], atol=1e-6)


def test_warmup_stable_decay_without_room_falls_at_once():
    got = curve("warmup_stable_decay", (10, 55, 100), warmup_steps=10, decay_steps=1000)
    np.testing.assert_allclose(got, [0.4, 0.2, 0], atol=1e-6)


def test_step_drops_at_its_boundaries_also_after_a_warmup():
    got = curve("step", (5, 10, 49, 51, 74, 76), warmup_steps=10, boundaries=(50, 75))
    np.testing.assert_allclose(got, [0.2, 0.4, 0.4, 0.04, 0.04, 0.004], rtol=1e-6)


def test_warmup_then_cosine_to_zero():
    got = curve("cosine", (0, 5, 10, 55, 100), warmup_steps=10)
    np.testing.assert_allclose(got, [0, 0.2, 0.4, 0.2, 0], atol=1e-6)
    assert math.isclose(curve("cosine", (25,))[0], 0.2 * (1 + math.cos(math.pi / 4)), rel_tol=1e-6)


def test_polynomial_falls_with_the_square_of_the_time_left():
    got = curve("polynomial", (0, 10, 55, 77.5, 100), warmup_steps=10)
    np.testing.assert_allclose(got, [0, 0.4, 0.1, 0.4 / 16, 0], atol=1e-6)


def test_unknown_schedule_is_named():
    with pytest.raises(ConfigError, match="'linear'; it must be one of constant, cosine"):
        curve("linear", (0,))


@pytest.mark.parametrize(("warmup", "total"), [(1, 49), (29, 100), (57, 100), (7, 25)])
def test_one_cycle_peaks_at_the_end_of_its_warm_up(warmup, total):
    """Also where warmup / total * total is rounded down to a step less."""
    schedule = make_schedule("one_cycle", learning_rate=1.0, total_steps=total, warmup_steps=warmup)
    rates = np.array([float(schedule(step)) for step in range(total)])
    assert np.isfinite(rates).all()
    assert rates.argmax() == warmup
    assert rates[warmup] == pytest.approx(1.0)


def test_a_restarted_schedule_falls_again_from_a_lower_peak_to_the_end():
    got = curve(
        "cosine",
        (5, 10, 35, 59, 60, 80, 90, 100),
        warmup_steps=10,
        restarts=(60, 80, 130),  # the last: after the end of the run
        restart_factor=0.5,
    )
    late = 0.2 * (1 + math.cos(math.pi * 49 / 50))
    np.testing.assert_allclose(got, [0.2, 0.4, 0.2, late, 0.2, 0.1, 0.05, 0], atol=1e-6)


def test_one_cycle_restarts_at_its_peak_and_leaves_the_first_cycle_as_it_was():
    options = {"learning_rate": 1.0, "warmup_steps": 15}
    alone = make_schedule("one_cycle", total_steps=60, **options)
    both = make_schedule(
        "one_cycle", total_steps=100, restarts=(60,), restart_factor=0.5, **options
    )
    assert [float(both(step)) for step in range(60)] == [float(alone(step)) for step in range(60)]
    np.testing.assert_allclose([both(60), both(80), both(100)], [0.5, 0.25, 0], atol=1e-6)


def test_restarted_steps_drop_at_the_boundaries_within_their_cycle():
    got = curve("step", (30, 50, 60, 80, 90), boundaries=(40, 85), restarts=(60,))
    np.testing.assert_allclose(got, [0.4, 0.04, 0.4, 0.4, 0.04], rtol=1e-6)


@pytest.mark.parametrize("restarts", [(10,), (60, 60), (60, 50)])
def test_restarts_that_do_not_follow_each_other_are_refused(restarts):
    with pytest.raises(ConfigError, match=r"restarts are steps \d.*after the warm-up of 10 steps"):
        curve("cosine", (0,), warmup_steps=10, restarts=restarts)
