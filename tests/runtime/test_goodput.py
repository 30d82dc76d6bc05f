import pytest

from lmscale.runtime.goodput import ATTEMPTS_FILE, PROGRESS_SECONDS, goodput, open_attempt
from lmscale.runtime.jsonl import read_rows


def start(time, first_step=0):
    return {"event": "start", "time": time, "attempt": 1, "first_step": first_step}


def progress(time, step, seconds, event="progress"):
    return {"event": event, "time": time, "attempt": 1, "step": step, "step_seconds": seconds}


def end(time, step, seconds):
    return progress(time, step, seconds, event="end")


def test_no_rows_are_no_time():
    assert goodput([]).fraction == 0.0
    assert goodput([]).restarts == 0


def test_start_up_and_saving_are_not_productive():
    found = goodput([start(100), progress(160, 10, 40), end(200, 20, 40)])
    assert (found.productive_seconds, found.wall_seconds) == (80, 100)
    assert found.fraction == 0.8


def test_the_time_between_two_attempts_counts_as_wall_time():
    rows = [start(0), end(100, 10, 90), start(400, 10), end(500, 20, 90)]
    assert goodput(rows).fraction == pytest.approx(180 / 500)
    assert goodput(rows).restarts == 1


def test_steps_that_were_done_again_count_once():
    rows = [start(0), progress(50, 10, 50), progress(75, 15, 25), start(80, 10), end(180, 20, 100)]
    found = goodput(rows)
    assert found.productive_seconds == 150
    assert found.redone_seconds == 25


def test_of_a_span_that_was_partly_done_again_the_kept_part_counts():
    rows = [start(0), progress(80, 8, 80), start(100, 6), end(200, 16, 100)]
    assert goodput(rows).productive_seconds == 60 + 100


def test_two_rewinds_in_a_row_keep_only_what_the_earliest_left():
    rows = [start(0), progress(100, 10, 100), start(100, 8), progress(150, 12, 50), start(160, 4)]
    found = goodput(rows, now=200)
    assert found.productive_seconds == 40
    assert found.redone_seconds == 110
    assert found.attempts == 3


def test_now_stretches_the_wall_of_a_running_run():
    assert goodput([start(0), progress(50, 5, 50)], now=100).fraction == 0.5


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def run_attempt(folder, clock, first_step, last_step, step_seconds=2.0):
    with open_attempt(folder, first_step=first_step, world_size=2, zero_stage=1, clock=clock) as a:
        for step in range(first_step + 1, last_step + 1):
            clock.now += step_seconds
            a.step(step, step_seconds)
        return a.goodput()


def test_an_attempts_own_figure_is_that_of_its_rows(tmp_path):
    clock = Clock()
    run_attempt(tmp_path, clock, 0, 20)
    clock.now += 60
    last = run_attempt(tmp_path, clock, 10, 30)
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert last == pytest.approx(goodput(rows).fraction) == pytest.approx(60 / 140)
    assert [row["attempt"] for row in rows if row["event"] == "start"] == [1, 2]
    assert rows[-1]["reason"] == "finished"


def test_a_killed_attempt_loses_little(tmp_path):
    clock = Clock()
    run_attempt(tmp_path, clock, 0, 30)
    path = tmp_path / ATTEMPTS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:7])  # killed while it wrote its end
    run_attempt(tmp_path, clock, 30, 30)
    lost = 60 - goodput(read_rows(path)).productive_seconds
    assert 0 <= lost <= PROGRESS_SECONDS + 2


def test_an_exception_is_the_reason_of_the_end(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with open_attempt(tmp_path, first_step=0, world_size=1, zero_stage=0):
            raise ZeroDivisionError
    assert read_rows(tmp_path / ATTEMPTS_FILE)[-1]["reason"] == "ZeroDivisionError"


def test_the_callers_reason_stands(tmp_path):
    with open_attempt(tmp_path, first_step=3, world_size=1, zero_stage=0) as attempt:
        attempt.end("SIGTERM")
    assert [row.get("reason") for row in read_rows(tmp_path / ATTEMPTS_FILE)] == [None, "SIGTERM"]


def test_setting_up_the_first_attempt_is_no_training(tmp_path):
    clock = Clock()
    with open_attempt(
        tmp_path, first_step=0, world_size=1, zero_stage=0, began_at=clock.now - 60, clock=clock
    ) as attempt:
        clock.now += 40
        attempt.step(1, 40.0)
        assert attempt.goodput() == 0.4
    rows = read_rows(tmp_path / ATTEMPTS_FILE)
    assert rows[0]["time"] == 940.0
    assert goodput(rows).fraction == 0.4
