"""What became of every start of a run, told from rows as batch scripts and attempts write them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.history import excluded_nodes, plan_history
from launcher.slurm import parse_accounting
from lmscale.runs.starts import Event, newest_of, plan_starts

ACCOUNTS = parse_accounting((Path(__file__).with_name("recorded") / "sacct.txt").read_text())
T0 = 1_800_000_000.0


def start(at: float, *, restart: int = 0, step: int = -1, job: str = "12", nodes: str = "n[1-2]"):
    row = {"event": "start", "time": T0 + at, "submission": "s", "job": job, "restart": restart}
    return {**row, "step": step, "nodes": nodes}


def end(at: float, step: int, *, code: int, action: str, reason: str, restart: int = 0):
    row = {"event": "end", "time": T0 + at, "submission": "s", "job": "12", "restart": restart}
    return {**row, "step": step, "code": code, "reason": reason, "action": action}


def attempt(
    number: int,
    at: float,
    first_step: int,
    *rows: tuple[float, int, str | None],
    job: str | None = "12",
    restart: int = 0,
):
    begin = {"event": "start", "time": T0 + at, "attempt": number, "first_step": first_step}
    begin |= {"job": job, "restart": restart}
    made = [{**begin, "host": "n1", "world_size": 4, "zero_stage": 1}]
    for later, step, reason in rows:
        event = {"event": "end", "reason": reason} if reason else {"event": "progress"}
        row = {"time": T0 + later, "attempt": number, "step": step, "step_seconds": 1.0}
        made.append({**event, **row})
    return made


def starts_of(events, attempts=(), watch=()):
    return plan_starts([Event.model_validate(row) for row in events], attempts, watch)


STOPPED = "stopped on request (USR1), saved at step 40"


def test_rows_whose_start_was_taken_out_by_hand_do_not_hide_the_next_start():
    """As ``read_rows`` advises where the first line is damaged."""
    attempts = [*attempt(1, 5, 0, (50, 20, None))[1:], *attempt(2, 125, 20, (200, 40, None))]
    assert [start.first_step for start in starts_of([], attempts)] == [20]


def test_every_start_is_one_line_with_its_end():
    events = [
        start(0),
        end(100, 40, code=75, action="requeue", reason=STOPPED),
        start(120, restart=1, step=40),
        start(300, restart=2, step=60, nodes="n1"),
    ]
    attempts = [
        *attempt(1, 5, 0, (50, 20, None), (99, 40, "SIGUSR1")),
        *attempt(2, 125, 40, (200, 77, None), restart=1),
        *attempt(3, 305, 60, restart=2),
    ]
    history = plan_history(starts_of(events, attempts), active_step=64)
    when = [time.strftime("%Y-%m-%d %H:%M", time.localtime(T0 + at)) for at in (0, 120, 300)]
    assert [stretch.line for stretch in history] == [
        f"{when[0]} job 12, n[1-2], 4 ranks, ZeRO 1, steps 0-40: {STOPPED}, requeued",
        f"{when[1]} job 12, n[1-2], 4 ranks, ZeRO 1, steps 40-60, 17 steps lost, 0 s: "
        "lost: no end was written",
        f"{when[2]} job 12, n1, 4 ranks, ZeRO 1, steps 60-64: goes on",
    ]


def rows_of(number, first_step, *rows, **more):
    """An attempt's rows with (step, seconds in steps) since the one before."""
    made = attempt(number, 0, first_step, *((number, step, None) for step, _ in rows), job=None)
    made[0] |= more
    told = zip(made[1:], rows, strict=True)
    return [made[0], *({**row, "seconds": {"step": seconds}} for row, (_, seconds) in told)]


@pytest.mark.parametrize(
    ("rows", "begun_again", "lost"),
    [
        (((10, 20.0), (20, 20.0)), {"first_step": 20}, (0, 0.0)),
        (((10, 20.0), (20, 20.0)), {"first_step": 15}, (5, 10.0)),
        (((10, 20.0), (20, 40.0)), {"first_step": 5}, (15, 50.0)),
        # The ledger knew of 4 more, at the mean of the others.
        (((10, 20.0), (20, 20.0)), {"first_step": 15, "found_step": 24}, (9, 18.0)),
        # Killed before a row told of any step.
        ((), {"first_step": 0, "found_step": 3}, (3, 0.0)),
    ],
)
def test_the_steps_that_a_start_has_lost_are_counted_with_their_time(rows, begun_again, lost):
    attempts = [*rows_of(1, 0, *rows), *rows_of(2, **begun_again)]
    first, last = plan_history(starts_of([], attempts), saved_step=0, active_step=30)
    assert (first.lost_steps, first.lost_seconds) == lost
    assert first.last_step == begun_again["first_step"]
    assert last.lost_steps == 0


def test_what_the_last_start_has_lost_counts_from_the_newest_checkpoint():
    attempts = rows_of(1, 0, (10, 20.0), (20, 20.0))
    (ended,) = plan_history(starts_of([], attempts), saved_step=16, done_step=22)
    assert "steps 0-16, 6 steps lost, 12 s: lost: no end was written" in ended.line
    (finished,) = plan_history(starts_of([], attempts), saved_step=None, done_step=22)
    assert finished.lost_steps == 0


def test_a_stop_near_the_limit_is_the_time_limit_and_one_far_from_it_is_not():
    submission = {"submission": "s", "limit_seconds": 3600.0, "signal_seconds": 300.0}
    ends = []
    for seconds in (3250, 3400, 1000):
        events = [start(0), end(seconds, 40, code=75, action="requeue", reason=STOPPED)]
        (stretch,) = plan_history(starts_of(events), submissions=[submission])
        ends.append(stretch.end)
    assert ends == [
        f"time limit: {STOPPED}, requeued",
        f"time limit: {STOPPED}, requeued",
        f"preempted or signalled: {STOPPED}, requeued",
    ]


def test_a_start_that_did_not_come_to_a_rank_has_its_end_as_well():
    events = [
        start(0),
        {**start(10), "event": "exclude", "nodes": "n2", "reason": "GPU 3 is missing"},
        end(11, -1, code=75, action="requeue", reason="bad nodes excluded: n2"),
    ]
    (stretch,) = plan_history(starts_of(events))
    assert stretch.line.endswith("n[1-2], steps 0-0: bad nodes excluded: n2, requeued")
    assert stretch.excluded == ("n2: GPU 3 is missing",)
    assert excluded_nodes(starts_of(events)) == {"n2": "GPU 3 is missing"}


def test_a_job_that_slurm_would_not_requeue_has_stopped():
    events = [
        start(0),
        end(10, 4, code=75, action="requeue", reason="stopped on request"),
        end(11, 4, code=75, action="stop", reason="Slurm would not requeue"),
    ]
    (stretch,) = plan_history(starts_of(events))
    assert (stretch.end, stretch.action) == ("Slurm would not requeue, stopped", "stop")


@pytest.mark.parametrize(
    ("job", "cause"),
    [("30", "a node failed"), ("28", "preempted"), ("29", "time limit")],
)
def test_the_accounting_says_why_a_start_was_lost(job, cause):
    record = next(a for a in ACCOUNTS if a.job == job)
    assert record.started_at is not None
    row = {**start(0, job=record.job), "time": record.started_at + 1}
    (stretch,) = plan_history(starts_of([row]), accounts=ACCOUNTS)
    assert stretch.end == f"lost: no end was written ({cause})"
    assert stretch.ended_at == record.ended_at


def test_of_two_copies_of_a_job_each_has_its_own_end():
    events = [
        start(0),
        start(60, restart=1, step=10),
        end(65, 10, code=75, action="fenced", reason="attempt 12.1 has taken this run over"),
        end(200, 90, code=0, action="done", reason="finished", restart=1),
    ]
    starts = starts_of(events)
    assert newest_of(starts, ["12"]) == starts[-1]
    first, second = plan_history(starts)
    assert first.end == "attempt 12.1 has taken this run over"
    assert (second.end, second.last_step) == ("finished", 90)


def test_an_attempt_belongs_to_the_newest_copy_though_an_older_one_ends_after_its_start():
    events = [
        start(0),
        start(60, restart=1, step=10),
        end(65, 10, code=75, action="fenced", reason="taken over"),
    ]
    attempts = [*attempt(1, 5, 0, (58, 12, None)), *attempt(2, 70, 10, (80, 20, None), restart=1)]
    first, second = plan_history(starts_of(events, attempts), active_step=22)
    assert (first.end, first.first_step) == ("taken over", 0)
    assert (second.job, second.first_step, second.last_step, second.end) == ("12", 10, 22, "")


def test_a_start_that_the_watchdog_ended_says_who_held_it_up():
    failed = end(100, 40, code=1, action="requeue", reason="failed (exit code 1)")
    hang = {"event": "end", "time": T0 + 90, "text": "rank 3 on n2 in data for 600 s"}
    first, second = plan_history(starts_of([start(0), failed, start(120, restart=1)], watch=[hang]))
    words = "hung (rank 3 on n2 in data for 600 s): failed (exit code 1), requeued"
    assert (first.end, second.end) == (words, "lost: no end was written")
    (local,) = plan_history(starts_of([], attempt(1, 5, 0, (80, 7, None), job=None), [hang]))
    assert local.end == "hung (rank 3 on n2 in data for 600 s)"


def test_starts_without_slurm_stand_among_the_others():
    events = [start(0), end(100, 40, code=75, action="stop", reason="told to")]
    attempts = [
        *attempt(1, 5, 0, (99, 40, "stop file")),
        *attempt(2, 500, 40, (600, 80, "SIGTERM"), job=None),
        *attempt(3, 700, 80, (750, 90, None), job=None),
    ]
    history = plan_history(starts_of(events, attempts))
    assert [(s.job, s.first_step, s.last_step) for s in history] == [
        ("12", 0, 40),
        (None, 40, 80),
        (None, 80, 90),
    ]
    assert [s.end for s in history] == ["told to, stopped", "SIGTERM", "lost: no end was written"]


def test_a_run_that_only_waits_has_no_history():
    assert plan_history(starts_of([])) == ()


def test_a_fault_that_the_ranks_named_is_no_time_limit_however_late_it_comes():
    told = end(990, 40, code=75, action="requeue", reason="disk full, saved at step 40")
    submission = {"submission": "s", "limit_seconds": 1000.0, "signal_seconds": 100.0}
    starts = starts_of([start(0), {**told, "fault": "disk full"}])
    (stretch,) = plan_history(starts, submissions=[submission])
    assert stretch.end == "disk full, saved at step 40, requeued"
    (stretch,) = plan_history(starts_of([start(0), told]), submissions=[submission])
    assert stretch.end.startswith("time limit: ")
