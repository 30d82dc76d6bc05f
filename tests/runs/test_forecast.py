"""When a run will be done."""

from __future__ import annotations

import pytest

from lmscale.runs.goodput import STRETCH_SECONDS, forecast


def row(step: int, at: float, *, seconds: float = 2.0) -> dict:
    return {"step": step, "time": at, "speed/step_seconds": seconds}


def test_the_speed_is_that_of_the_last_stretch_with_its_saves():
    rows = [row(10 * n, 100.0 + 30 * n) for n in range(5)]  # 3 s a step, 2 s of them steps
    found = forecast(rows, starts=[0.0], step=40, steps=100, goodput=0.5)
    assert found is not None
    assert (found.stretch_steps, found.seconds_left) == (40, pytest.approx(180))
    assert found.seconds_left_with_goodput == pytest.approx(360)


def test_what_was_long_ago_or_before_a_restart_does_not_count():
    slow = [row(n, 1000.0 * n) for n in range(3)]
    fast = [row(10 + n, 10_000.0 + n) for n in range(5)]
    found = forecast([*slow, *fast], starts=[0.0, 9_000.0], step=14, steps=24, goodput=1.0)
    assert found is not None and found.seconds_left == pytest.approx(10)
    old = [row(n, n * STRETCH_SECONDS * 2) for n in range(3)]
    found = forecast(old, starts=[0.0], step=2, steps=4, goodput=1.0)
    assert found is not None and found.seconds_left == pytest.approx(4)  # by the line's own mean


def test_a_restart_without_a_line_yet_is_judged_by_the_attempt_before():
    rows = [row(n, 100.0 + n) for n in range(5)]
    found = forecast(rows, starts=[0.0, 5_000.0], step=4, steps=14, goodput=0.0)
    assert found is not None and found.seconds_left == pytest.approx(10)
    assert found.seconds_left_with_goodput is None


def test_without_a_line_or_without_steps_left_there_is_no_forecast():
    assert forecast([], starts=[0.0], step=0, steps=10, goodput=1.0) is None
    assert forecast([row(10, 5.0)], starts=[0.0], step=10, steps=10, goodput=1.0) is None
    assert forecast([row(10, 5.0)], starts=[], step=9, steps=10, goodput=1.0) is None


def test_steps_under_a_profiler_do_not_make_the_forecast_longer():
    before = [row(n, 100.0 + 2 * n) for n in range(5)]
    profiled = {"step": 6, "time": 500.0, "speed/profiled_steps": 2}
    after = [row(6 + n, 500.0 + 2 * n) for n in range(1, 4)]
    lines = [*before, {**profiled, "speed/step_seconds": 2.0}, *after]
    found = forecast(lines, starts=[0.0], step=9, steps=19, goodput=1.0)
    assert found is not None and found.seconds_left == pytest.approx(20)
    # A line of such steps alone has no speed.
    found = forecast([*before, profiled], starts=[0.0], step=6, steps=16, goodput=1.0)
    assert found is not None and found.seconds_left == pytest.approx(20)
