import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.files.jsonl import read_rows
from lmscale.runs import attempts as attempts_module
from lmscale.runs.attempts import ATTEMPTS_FILE, AttemptLog
from lmscale.runs.goodput import FINISHED, LEAP_SECONDS, PROGRESS_SECONDS, goodput, pause_after
from lmscale.watch.heartbeat import PhaseClock


def start(time, first_step=0):
    return {"event": "start", "time": time, "attempt": 1, "first_step": first_step}


def progress(time, step, step_seconds, event="progress", **more):
    """A row whose seconds were all spent in steps, unless it has ``seconds``."""
    more = {"seconds": {"step": step_seconds}} | more
    row = {"event": event, "time": time, "attempt": 1, "step": step, "step_seconds": step_seconds}
    return row | more


def end(time, step, step_seconds, **more):
    return progress(time, step, step_seconds, event="end", **more)


def test_no_rows_are_no_time():
    assert goodput([]).fraction == 0.0
    assert goodput([]).restarts == 0
    assert goodput([]).wall_seconds == 0.0


def test_start_up_and_saving_are_not_productive():
    found = goodput([start(100), progress(160, 10, 40), end(200, 20, 40)])
    assert (found.productive_seconds, found.wall_seconds) == (80, 100)
    assert found.start_seconds == 20
    assert found.fraction == 0.8


def test_the_time_between_two_attempts_is_down_and_no_running_time():
    rows = [start(0), end(100, 10, 90), start(400, 10), end(500, 20, 90)]
    found = goodput(rows)
    assert found.fraction == pytest.approx(180 / 500)
    assert found.running_fraction == pytest.approx(180 / 200)
    assert (found.down_seconds, found.restarts) == (300, 1)


@pytest.mark.parametrize("reason", ["finished", "stopped early at step 10: it got no better"])
def test_the_time_after_a_good_end_is_not_the_runs(reason):
    rows = [start(0), end(100, 10, 90, reason=reason), start(520, 10), end(620, 20, 90)]
    found = goodput(rows)
    assert (found.down_seconds, found.wall_seconds) == (0, 200)
    assert found.fraction == pytest.approx(180 / 200)
    again = goodput([*rows, start(700, 20), end(800, 30, 90)])
    assert again.down_seconds == 80, "that end was none"


def test_what_a_run_that_is_gone_did_beyond_its_checkpoint_is_lost_before_it_is_resumed():
    rows = [start(0), progress(80, 8, 80), progress(100, 10, 20)]
    gone = goodput(rows, saved_step=6)
    assert (gone.productive_seconds, gone.redone_seconds, gone.wall_seconds) == (60, 40, 100)
    assert goodput(rows, saved_step=10) == goodput(rows)


def test_steps_that_were_done_again_count_once():
    rows = [start(0), progress(50, 10, 50), progress(75, 15, 25), start(75, 10), end(175, 20, 100)]
    found = goodput(rows)
    assert found.productive_seconds == 150
    assert found.redone_seconds == 25


def test_of_a_span_that_was_partly_done_again_the_kept_part_counts():
    rows = [start(0), progress(80, 8, 80), start(100, 6), end(200, 16, 100)]
    assert goodput(rows).productive_seconds == 60 + 100


def test_two_restarts_in_a_row_keep_only_what_the_earliest_left():
    rows = [start(0), progress(100, 10, 100), start(100, 8), progress(150, 12, 50), start(150, 4)]
    found = goodput(rows, now=200)
    assert found.productive_seconds == 40
    assert found.redone_seconds == 110
    assert found.attempts == 3
    assert found.other_seconds == 50, "nobody has told yet"


def test_after_the_last_row_of_a_killed_attempt_so_much_is_lost_as_a_row_would_have_come():
    rows = [start(0), progress(0, 0, 0.0), progress(50, 5, 50)]
    soon, late = ([*rows, start(50 + later, 5)] for later in (10, 1000))
    assert (goodput(soon).redone_seconds, goodput(soon).down_seconds) == (10, 0)
    found = goodput(late)
    assert (found.redone_seconds, found.down_seconds) == (PROGRESS_SECONDS, 1000 - PROGRESS_SECONDS)


def test_of_an_attempt_that_was_killed_early_no_more_is_lost_than_a_row_was_away():
    causes = {"seconds": {"step": 2.0}}
    rows = [start(0), progress(10, 0, 0.0, seconds={"start": 10.0})]
    rows += [progress(11, 1, 1.0, **causes), progress(13, 2, 2.0, **causes), start(113, 2)]
    found = goodput(rows)
    assert (found.redone_seconds, found.down_seconds) == (3, 97)
    assert [pause_after(10.0 + age, opened_at=10.0) for age in (0, 1, 4, 90)] == [1, 1, 4, 15]


def test_now_stretches_the_wall_of_a_running_run():
    assert goodput([start(0), progress(50, 5, 50)], now=100).fraction == 0.5


def test_every_cause_is_told_apart():
    causes = {"start": 8.0, "load": 5.0, "step": 40.0, "data": 7.0, "save": 6.0, "evaluation": 3.0}
    rows = [start(0), progress(80, 10, 47, seconds=causes)]
    rows.append(end(85, 10, 0.0, seconds={"other": 2.0, "step": 1.0}))
    found = goodput(rows)
    assert found.seconds == {
        "productive": 40.0,
        "redone": 1.0,  # of a step that was never finished
        "undone": 0.0,
        "stalls": 7.0,
        "saves": 6.0,
        "evaluation": 3.0,
        "start": 8.0 + 11.0,  # before the first row nothing else can have been
        "load": 5.0,
        "down": 0.0,
        "other": 2.0 + 2.0,
    }
    assert sum(found.fractions.values()) == pytest.approx(1.0)


def test_steps_that_a_rewind_undoes_and_those_that_were_skipped_are_undone():
    rows = [start(0), progress(100, 10, 100, seconds={"step": 100.0}, skipped_steps=2)]
    rows.append(progress(150, 15, 50, event="rewind", to_step=5, seconds={"step": 50.0}))
    rows.append(progress(260, 15, 100, seconds={"step": 100.0, "rewind": 10.0}))
    found = goodput(rows)
    # Of the first ten steps five stayed, of which (no row says which) a fifth was skipped.
    assert found.productive_seconds == 40 + 100
    assert found.undone_seconds == 10 + 50 + 50 + 10
    assert found.redone_seconds == 0


def test_a_step_that_takes_many_rows_counts_whole_once_it_is_done_and_not_at_all_if_it_hangs():
    rows = [start(0)]
    rows += [progress(15.0 * n, 0, 0.0, seconds={"step": 15.0}) for n in range(1, 4)]
    done = [*rows, progress(60, 1, 60.0, seconds={"step": 15.0})]
    assert goodput(done).productive_seconds == 60
    assert goodput(rows).other_seconds == 45
    hung = goodput([*rows, start(45, 0)])
    assert (hung.productive_seconds, hung.redone_seconds) == (0, 45)


def test_a_clock_that_was_set_back_or_runs_fast_makes_no_time():
    rows = [start(100), progress(90, 1, 5, seconds={"step": 5.0}), end(110, 2, 50)]
    found = goodput(rows)
    assert found.wall_seconds == found.productive_seconds == 10


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@dataclass
class Machine:
    """A process's clock and what its phases add up to."""

    clock: Clock = field(default_factory=Clock)
    phases: PhaseClock = field(init=False)

    def __post_init__(self):
        self.phases = PhaseClock(self.clock)

    def spend(self, phase, seconds):
        self.phases.enter(phase)
        self.clock.now += seconds

    def attempt(self, folder, first_step, began_at=None):
        return AttemptLog(
            folder,
            first_step=first_step,
            world_size=2,
            zero_stage=1,
            began_at=began_at,
            clock=self.clock,
            phase_seconds=self.phases.seconds,
        )


def run_attempt(folder, machine, first_step, last_step, step_seconds=2.0, reason=FINISHED):
    machine.phases = PhaseClock(machine.clock)
    with machine.attempt(folder, first_step) as attempt:
        for step in range(first_step + 1, last_step + 1):
            machine.spend("forward", step_seconds)
            attempt.step(step, step_seconds)
        attempt.end(reason)
        return attempt.goodput().fraction


def test_an_attempts_own_figure_is_that_of_its_rows(tmp_path):
    machine = Machine()
    run_attempt(tmp_path, machine, 0, 20, reason="SIGTERM")
    machine.clock.now += 60
    last = run_attempt(tmp_path, machine, 10, 30)
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert last == pytest.approx(goodput(rows).fraction) == pytest.approx(60 / 140)
    assert [row["attempt"] for row in rows if row["event"] == "start"] == [1, 2]
    assert rows[-1]["reason"] == "finished"


def test_a_killed_attempt_loses_little(tmp_path):
    machine = Machine()
    run_attempt(tmp_path, machine, 0, 30)
    path = tmp_path / ATTEMPTS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:7])  # killed while it wrote its end
    run_attempt(tmp_path, machine, 30, 30)
    lost = 60 - goodput(read_rows(path)).productive_seconds
    assert 0 <= lost <= PROGRESS_SECONDS + 2


def test_a_run_that_is_killed_every_few_seconds_tells_what_it_did(tmp_path):
    machine = Machine()
    for first in range(0, 50, 5):
        with pytest.raises(KeyboardInterrupt), machine.attempt(tmp_path, first) as attempt:
            for step in range(first + 1, first + 6):
                machine.spend("forward", 1.0)
                attempt.step(step, 1.0)
            attempt.has_ended = True  # SIGKILL
            raise KeyboardInterrupt
    assert goodput(read_rows(tmp_path / ATTEMPTS_FILE)).productive_seconds >= 25


def test_an_exception_is_the_reason_of_the_end(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with AttemptLog(tmp_path, first_step=0, world_size=1, zero_stage=0):
            raise ZeroDivisionError
    assert read_rows(tmp_path / ATTEMPTS_FILE)[-1]["reason"] == "ZeroDivisionError"


def test_the_callers_reason_stands(tmp_path):
    with AttemptLog(tmp_path, first_step=3, world_size=1, zero_stage=0) as attempt:
        attempt.end("SIGTERM")
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert [row.get("reason") for row in rows] == [None, None, "SIGTERM"]


def test_setting_up_the_first_attempt_is_no_training(tmp_path):
    machine = Machine()
    machine.clock.now += 50  # 10 s more had gone before the phases were counted
    with machine.attempt(tmp_path, 0, began_at=990.0) as attempt:
        machine.spend("data", 5.0)  # the first step's
        machine.spend("forward", 40.0)
        attempt.step(1, 40.0)
        assert attempt.goodput().fraction == pytest.approx(40 / 105)
        assert attempt.goodput().start_seconds == pytest.approx(65)
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert rows[0]["time"] == 990.0
    assert goodput(rows).fraction == pytest.approx(40 / 105)


def test_a_step_that_takes_long_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts_module, "FIRST_SECONDS", 0.01)
    written = threading.Event()
    append = AttemptLog._write
    machine = Machine()
    with machine.attempt(tmp_path, 0):

        def write(self, event, **more):
            append(self, event, **more)
            written.set()

        monkeypatch.setattr(AttemptLog, "_write", write)
        machine.spend("forward", PROGRESS_SECONDS)
        assert written.wait(30)
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert [row["event"] for row in rows] == ["start", "progress", "progress", "end"]
    assert (rows[2]["step"], rows[2]["seconds"]) == (0, {"step": PROGRESS_SECONDS})


seconds = st.floats(0, 100).map(lambda value: round(value, 3))
deeds = st.one_of(
    st.tuples(st.just("step"), st.just(0.0)),
    st.tuples(st.sampled_from(["save", "evaluate", "hooks", "data"]), seconds),
    st.tuples(st.just("rewind"), seconds),
)
stories = st.lists(
    st.fixed_dictionaries(
        {
            "back": st.integers(0, 5),
            "down": seconds,
            "start": seconds,
            "deeds": st.lists(deeds, max_size=30),
            "is_killed": st.booleans(),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(story=stories, step_seconds=st.sampled_from([0.25, 3.0, 40.0]))
@settings(max_examples=150, deadline=None)
def test_every_second_has_one_cause_and_no_step_counts_twice(story, step_seconds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    clock, step, kept = Clock(), 0, set[int]()
    for attempt_story in story:
        clock.now += attempt_story["down"]
        step = max(0, step - attempt_story["back"])
        kept = {number for number in kept if number <= step}
        machine = Machine(clock)
        began_at = clock.now
        machine.spend("load", attempt_story["start"])
        with machine.attempt(folder, step, began_at=began_at) as attempt:
            for deed, duration in attempt_story["deeds"]:
                if deed == "step":
                    machine.spend("forward", step_seconds)
                    machine.phases.enter("hooks")
                    step += 1
                    kept.add(step)
                    attempt.step(step, step_seconds)
                elif deed == "rewind":
                    step = max(0, step - 3)
                    kept = {number for number in kept if number <= step}
                    attempt.rewound(step)
                    machine.spend("rewind", duration)
                else:
                    machine.spend(deed, duration)
            live = attempt.goodput()
            attempt.has_ended = attempt_story["is_killed"]
            attempt.end("SIGTERM")
    rows = read_rows(folder / ATTEMPTS_FILE)
    found = goodput(rows)
    assert found.wall_seconds == pytest.approx(rows[-1]["time"] - rows[0]["time"], abs=1e-3)
    assert all(0.0 <= share <= 1.0 for share in found.fractions.values())
    assert sum(found.fractions.values()) == pytest.approx(1.0 if found.wall_seconds else 0.0)
    assert found.productive_seconds <= step_seconds * len(kept) + 1e-3
    assert live.wall_seconds == pytest.approx(clock.now - rows[0]["time"], abs=1e-2)
    if not any(attempt_story["is_killed"] for attempt_story in story):
        assert found.productive_seconds == pytest.approx(step_seconds * len(kept), abs=1e-2)
        assert live.seconds == pytest.approx(found.seconds, abs=1e-2)


def rows_of_three_attempts():
    """Of 40 rows each, 15 s apart and a day between two attempts, with a rewind."""
    rows, now = [], 1e9
    for number in range(3):
        now += 86_400.0
        rows.append(start(now, first_step=40 * number))
        for step in range(40 * number + 1, 40 * number + 41):
            now += 15.0
            rows.append(progress(now, step, 14.0))
    return rows


@settings(max_examples=200, deadline=None)
@given(
    leap=st.one_of(st.floats(-1e8, 1e8), st.sampled_from([-3600.0, 3600.0, 1e9, -1e9 + 1])),
    ends=st.tuples(st.integers(0, 123), st.integers(0, 200)),
)
def test_a_clock_that_leaps_spoils_no_more_than_a_quarter_of_an_hour(leap, ends):
    rows = rows_of_three_attempts()
    true = goodput(rows)
    first, last = ends
    for row in rows[first:last]:
        row["time"] += leap
    found = goodput(rows)
    for cause in set(true.seconds) - {"down"}:
        assert abs(found.seconds[cause] - true.seconds[cause]) <= 2 * LEAP_SECONDS, cause
    begins = (0, 41, 82)  # of an attempt, where nothing but this clock tells how long it was down
    if first < last and not {first, min(last, 123)} & {*begins, 123}:
        assert abs(found.down_seconds - true.down_seconds) <= 2 * LEAP_SECONDS
