"""Data of another level is no divergence; what fails again and again is one."""

import random

import pytest
from guard_cases import (
    BAD_NORM,
    FULL,
    GOOD,
    HIGH_LOSS,
    HIGH_NORM,
    NAN,
    SPIKES,
    WINDOW,
    guard_of,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.guard.state import find_limits


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.lists(st.tuples(st.floats(0.2, 4.0), st.floats(0.1, 0.9)), min_size=2, max_size=8),
)
def test_data_that_changes_its_loss_again_and_again_never_stops_a_run(seed, levels):
    draws = random.Random(seed)
    changes = [
        {"loss": loss * (1 + 0.02 * draws.gauss(0, 1)), "gradient_norm": 0.5 + 0.1 * norm}
        for loss, norm in levels
        for _ in range(150)
    ]
    guard = guard_of(spike_window=64)
    assert watch(guard, changes) == (len(changes), None)


@pytest.mark.parametrize("high", [HIGH_LOSS, HIGH_NORM])
def test_the_medians_follow_a_lasting_level_and_a_divergence_is_found_before_and_behind(high):
    worse = {"loss": 6.0, "gradient_norm": 400.0}
    for steps in (1, 10, 50, 51, 60, 200):
        guard = guard_of()
        assert watch(guard, [*FULL, *[high] * steps])[1] is None
        limits = find_limits(guard.state.window, guard.config)
        assert (limits.loss > 4.0 and "loss" in high) == (steps > 50 and "loss" in high)
        assert (limits.gradient_norm > 40) == (steps > 50 and "gradient_norm" in high)
        at, error = watch(guard, [worse] * 9, first_step=WINDOW + steps + 1)
        assert (at, error is not None) == (WINDOW + steps + 3, True)


def test_some_high_steps_of_a_model_that_knows_its_data_by_heart_are_no_divergence():
    known = [{"loss": 0.01, "gradient_norm": 0.02}] * WINDOW
    high = [{"loss": loss, "gradient_norm": 20 * loss} for loss in (0.1, 0.25, 0.15, 0.08)]
    assert watch(guard_of(), [*known, *high, *known])[1] is None


@pytest.mark.parametrize(
    "row",
    [
        [{"loss": NAN, "gradient_norm": NAN}] * 2 + [GOOD],
        [SPIKES[1], SPIKES[1], GOOD],
        [BAD_NORM, HIGH_NORM],
    ],
)
def test_what_fails_again_and_again_is_a_divergence(row):
    step, error = watch(guard_of(max_nonfinite_steps=5), [*FULL, *row * 100])
    assert error is not None and WINDOW + 51 <= step < 150
    assert "51 of the last " in str(error)
    assert watch(guard_of(), [*FULL, *[row[0], GOOD] * 300])[1] is None
