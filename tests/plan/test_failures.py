"""Failures of a run: the closed forms, and the simulation against them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.plan.failures import (
    HOUR,
    LLAMA_3,
    OPT_175B,
    RECORDS,
    expect_wall_seconds,
    find_save_interval,
    find_widest_interval,
    find_young_interval,
)
from lmscale.plan.simulation import Course, Hazards, simulate

COURSE = Course(steps=1000, step_seconds=10.0, save_every_steps=50, save_seconds=20.0)


def test_published_records_give_the_mean_times_that_their_papers_speak_of():
    assert LLAMA_3.job_mtbf_seconds == pytest.approx(3.09 * HOUR, rel=0.01)  # "every three hours"
    assert 60 < OPT_175B.node_mtbf_seconds / 86_400 < 90
    assert len({record.source for record in RECORDS}) == len(RECORDS)


@given(save=st.floats(0.1, 1000), mtbf=st.floats(1e3, 1e8))
def test_dalys_interval_is_where_his_wall_time_is_least(save: float, mtbf: float):
    best = find_save_interval(save_seconds=save, mtbf_seconds=mtbf)

    def wall(interval: float) -> float:
        return expect_wall_seconds(
            1e6,
            interval_seconds=interval,
            save_seconds=save,
            restart_seconds=0,
            mtbf_seconds=mtbf,
        )

    # His series stops at the third term: of the least time at most this much is lost by it.
    grid = [best * 1.02**power for power in range(-120, 121)]
    assert wall(best) <= min(map(wall, grid)) * 1.005


@given(save=st.floats(0.1, 10), mtbf=st.floats(1e5, 1e8))
def test_young_is_dalys_first_term(save: float, mtbf: float):
    daly = find_save_interval(save_seconds=save, mtbf_seconds=mtbf)
    assert daly == pytest.approx(
        find_young_interval(save_seconds=save, mtbf_seconds=mtbf), rel=0.02
    )


@given(save=st.floats(0.01, 1000), mtbf=st.floats(1e3, 1e8), tolerance=st.floats(1e-4, 0.1))
def test_the_widest_interval_costs_just_what_it_may(save: float, mtbf: float, tolerance: float):
    best = find_save_interval(save_seconds=save, mtbf_seconds=mtbf)
    widest = find_widest_interval(save_seconds=save, mtbf_seconds=mtbf, tolerance=tolerance)

    def wall(interval: float) -> float:
        return expect_wall_seconds(
            1.0,
            interval_seconds=interval,
            save_seconds=save,
            restart_seconds=0,
            mtbf_seconds=mtbf,
        )

    assert widest >= best
    assert wall(widest) == pytest.approx(wall(best) * (1 + tolerance), rel=1e-6)


def test_where_nothing_fails_no_save_pays_and_where_all_does_daly_says_the_mean_time():
    assert find_save_interval(save_seconds=1, mtbf_seconds=math.inf) == math.inf
    assert find_save_interval(save_seconds=100, mtbf_seconds=50) == 50


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 500),
    every=st.integers(1, 600),
    scored=st.integers(0, 600),
    commit=st.floats(0, 100),
)
def test_without_failures_a_run_takes_exactly_its_parts(
    steps: int, every: int, scored: int, commit: float
):
    course = Course(
        steps=steps,
        step_seconds=2.0,
        save_every_steps=every,
        save_seconds=3.0,
        commit_seconds=commit,
        evaluate_every_steps=scored,
        evaluation_seconds=5.0,
    )
    found = simulate(course, Hazards(start_seconds=7.0, load_seconds=11.0), repetitions=3)
    saves = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    scores = [s for s in range(1, steps + 1) if scored and (s % scored == 0 or s == steps)]
    waited = commit  # for the last
    for before, after in zip(saves, saves[1:], strict=False):
        between = 2.0 * (after - before) + 5.0 * len([s for s in scores if before < s <= after])
        waited += max(0.0, commit - between)
    seconds = found.mean.seconds
    assert seconds["productive"] == pytest.approx(2.0 * steps)
    assert seconds["saves"] == pytest.approx(3.0 * len(saves) + waited)
    assert seconds["evaluation"] == pytest.approx(5.0 * len(scores))
    assert (seconds["start"], seconds["load"], seconds["redone"], seconds["down"]) == (7, 0, 0, 0)
    assert found.mean.attempts == 1
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("mtbf", [600.0, 2000.0, 20_000.0])
@pytest.mark.parametrize("restart", [0.0, 300.0])
def test_the_simulation_agrees_with_dalys_closed_form(mtbf: float, restart: float):
    # Daly's run has its restart behind failures alone, and the restart may fail as well.
    found = simulate(
        COURSE, Hazards(mtbf_seconds=mtbf, load_seconds=restart), repetitions=4000, seed=7
    )
    expected = expect_wall_seconds(
        COURSE.work_seconds,
        interval_seconds=500.0,
        save_seconds=20.0,
        restart_seconds=restart,
        mtbf_seconds=mtbf,
    )
    # Before its first save a run has nothing to load: of 20 pieces one is restarted for nothing.
    spared = 1 / 20 * (1 - math.exp(-restart / mtbf)) + 1e-9
    mean = found.mean.wall_seconds
    error = 4 * found.standard_error / found.goodput  # of four standard errors
    assert expected * (1 - spared - error) <= mean <= expected * (1 + error)


def test_the_simulated_best_interval_is_dalys():
    hazards = Hazards(mtbf_seconds=3000.0, load_seconds=60.0)
    best = find_save_interval(save_seconds=20.0, mtbf_seconds=3000.0)

    def goodput(interval: float) -> float:
        course = replace(COURSE, steps=20_000, save_every_steps=round(interval / 10))
        return simulate(course, hazards, repetitions=100, seed=3).goodput

    assert goodput(best) > max(goodput(best / 3), goodput(best * 3))


@settings(max_examples=20, deadline=None)
@given(
    mtbf=st.floats(2000, 1e6),
    queue=st.floats(0, 1000),
    commit=st.floats(0, 300),
    preemption=st.floats(5000, 1e6),
)
def test_goodput_rises_with_the_mean_time_between_failures(
    mtbf: float, queue: float, commit: float, preemption: float
):
    course = replace(COURSE, commit_seconds=commit)

    def run(mtbf_seconds: float):
        hazards = Hazards(
            mtbf_seconds=mtbf_seconds,
            preemption_seconds=preemption,
            queue_seconds=queue,
            start_seconds=30.0,
            load_seconds=10.0,
        )
        return simulate(course, hazards, repetitions=200)

    low, high = run(mtbf), run(2 * mtbf)
    error = 4 * math.hypot(low.standard_error, high.standard_error)
    assert high.goodput >= low.goodput - error
    for found in (low, high):  # what is trained is trained once
        assert found.mean.productive_seconds == pytest.approx(course.work_seconds)


def test_a_stop_that_was_announced_loses_no_step():
    hazards = Hazards(preemption_seconds=900.0, limit_seconds=2000.0, start_seconds=10.0)
    found = simulate(replace(COURSE, commit_seconds=15.0), hazards)
    assert found.mean.redone_seconds == 0
    assert found.mean.attempts > 10


def test_what_was_not_committed_yet_is_lost_as_well():
    quick, slow = (
        simulate(replace(COURSE, commit_seconds=commit), Hazards(mtbf_seconds=1500.0))
        for commit in (0.0, 400.0)
    )
    assert slow.mean.redone_seconds > quick.mean.redone_seconds * 1.3


def test_a_run_that_cannot_get_to_its_first_save_is_said_to_have_no_end():
    never = replace(COURSE, save_every_steps=1000)
    found = simulate(never, Hazards(mtbf_seconds=300.0), repetitions=2)
    assert not found.is_finished
    assert found.goodput == 0


def test_the_same_seed_gives_the_same_figures():
    hazards = Hazards(mtbf_seconds=1000.0, queue_seconds=60.0)
    assert simulate(COURSE, hazards, seed=5) == simulate(COURSE, hazards, seed=5)
    assert simulate(COURSE, hazards, seed=5) != simulate(COURSE, hazards, seed=6)


def test_months_on_16384_gpus_are_a_few_hundred_attempts():
    steps = 3 * 30 * 86_400 // 20
    course = Course(
        steps=steps, step_seconds=20.0, save_every_steps=100, save_seconds=10, commit_seconds=60
    )
    hazards = Hazards(mtbf_seconds=LLAMA_3.job_mtbf_seconds, start_seconds=120, load_seconds=60)
    found = simulate(course, hazards, repetitions=20)
    assert 600 < found.mean.attempts < 900
    assert found.goodput == pytest.approx(0.87, abs=0.05)
