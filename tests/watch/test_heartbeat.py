import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict

import pytest

from lmscale.ranks.ranks import Ranks
from lmscale.watch import heartbeat
from lmscale.watch.heartbeat import (
    Heartbeat,
    PhaseClock,
    beat_path,
    beat_seconds,
    read_beat,
    read_heartbeats,
)

INTERVAL = 0.02
ALONE = Ranks()


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    return tmp_path


def until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def test_a_rank_tells_where_it_is_from_the_first_moment_to_the_last(run_folder):
    with Heartbeat(run_folder, Ranks(rank=3, world_size=4), interval=INTERVAL):
        first = read_beat(beat_path(run_folder, 3))
        assert (first.rank, first.world_size, first.phase) == (3, 4, "start")
        assert (first.pid, first.attempt, first.is_starting) == (os.getpid(), "local", True)
        heartbeat.phase("data", 812)
        heartbeat.phase("agree")
        until(lambda: read_beat(beat_path(run_folder, 3)).phase == "agree")
        later = read_beat(beat_path(run_folder, 3))
        assert (later.step, later.place, later.ticks) == (812, 1, 0)
        assert later.beat > first.beat
    assert [beat.phase for beat in read_heartbeats(run_folder)] == ["end"]


def test_the_place_in_a_step_begins_anew_with_the_step(run_folder):
    with Heartbeat(run_folder, ALONE, interval=60) as beats:
        places = []
        for step in (1, 2):
            for phase in ("forward", "backward", "step"):
                heartbeat.phase(phase, step if phase == "forward" else None)
                places.append(beats.observe().place)
        heartbeat.tick()
        heartbeat.tick()
        assert beats.observe().ticks == 2
    assert places == [0, 1, 2, 0, 1, 2]


def test_a_phase_that_begins_while_a_beat_is_made_makes_the_beat_no_less_readable(
    run_folder, monkeypatch
):
    with Heartbeat(run_folder, ALONE, interval=60) as beats:

        def now():
            monkeypatch.undo()
            heartbeat.phase("backward", 7)
            return time.monotonic() - 1.0

        monkeypatch.setattr(heartbeat.time, "monotonic", now)
        heartbeat.overwrite(beats.path, asdict(beats.observe()))
        assert read_beat(beats.path).step == 7


def test_standing_still_is_counted_until_something_moves(run_folder):
    with Heartbeat(run_folder, ALONE, interval=0.2) as beats:
        beats.observe()
        time.sleep(0.05)
        assert beats.observe().still_seconds >= 0.05
        time.sleep(0.05)
        still_seconds = beats.observe().still_seconds
        assert still_seconds >= 0.1
        heartbeat.tick()
        assert beats.observe().still_seconds < still_seconds


def test_time_in_which_the_process_was_stopped_is_not_time_it_stood_still(run_folder):
    with Heartbeat(run_folder, ALONE, interval=INTERVAL) as beats:
        beats.observe()
        time.sleep(20 * INTERVAL)  # as if a suspended job went on: its own thread did not run
        with_thread = beats.observe().still_seconds
    lonely = Heartbeat(run_folder, ALONE, interval=INTERVAL)  # never started: nobody observes
    time.sleep(20 * INTERVAL)
    assert lonely.observe().still_seconds <= 3 * INTERVAL < with_thread


def test_own_work_is_the_median_of_recent_steps_forward_and_wait(run_folder):
    import torch

    cpu = torch.device("cpu")
    with Heartbeat(run_folder, ALONE, interval=60, recent_steps=3) as beats:
        for wait in (0.0, 5.0, 1.0, 2.0):
            for _ in range(2):
                with heartbeat.own_work(cpu):
                    time.sleep(0.01)
            heartbeat.end_step(wait)
            told = beats.observe().forward_seconds
            assert (told is None) == (wait in (0.0, 5.0)), "three steps are needed"
        assert told == pytest.approx(2.02, abs=0.5)
        assert not beats.observe().is_starting


def test_without_a_heartbeat_nothing_happens():
    import torch

    heartbeat.phase("data", 1)
    heartbeat.tick()
    heartbeat.end_step(0.0)
    heartbeat.set_slowest(1, 2.0)
    with heartbeat.own_work(torch.device("cpu")):
        pass
    assert heartbeat.slowest_figures() == {}


def test_the_seconds_of_the_phases_are_counted_with_or_without_a_heartbeat(run_folder):
    for number in range(2):
        before = heartbeat.phase_seconds()
        with Heartbeat(run_folder, ALONE, interval=60) if number else nullcontext():
            heartbeat.phase("forward", 1)
            time.sleep(0.02)
            heartbeat.phase("save")
            time.sleep(0.01)
            heartbeat.end_step(0.0)
        after = heartbeat.phase_seconds()
        gained = {name: after[name] - before.get(name, 0.0) for name in ("forward", "save")}
        assert 0.02 <= gained["forward"] < 5
        assert 0.01 <= gained["save"] < 5


def clock_of(*instants):
    return iter(instants).__next__


def test_a_start_lasts_until_the_first_step_and_a_rewind_as_well():
    phases = PhaseClock(clock_of(0.0, *range(10, 200, 10)))
    for name in ("load", "start", "data", "agree", "forward", "data", "hooks", "rewind"):
        phases.enter(name)
    assert phases.seconds() == {"start": 40, "load": 10, "forward": 10, "data": 10, "hooks": 10} | {
        "rewind": 10
    }
    for name in ("save", "load", "data", "forward", "data"):
        phases.enter(name)
    found = phases.seconds()
    assert (found["rewind"], found["load"], found["data"]) == (50, 10, 20)


def test_what_another_thread_does_is_no_phase_of_the_process():
    phases = PhaseClock(clock_of(0.0, 5.0))
    writer = threading.Thread(target=phases.enter, args=("save",))
    writer.start()
    writer.join()
    assert phases.seconds() == {"start": 5.0}


def test_the_slowest_rank_is_known_to_the_trackers(run_folder):
    with Heartbeat(run_folder, ALONE, interval=60):
        heartbeat.set_slowest(3, 1.9)
        figures = heartbeat.slowest_figures()
    assert figures == {"speed/slowest_rank": 3.0, "speed/slowest_ratio": 1.9}


def test_a_file_keeps_its_length_and_half_a_file_is_none(run_folder):
    path = beat_path(run_folder, 0)
    with Heartbeat(run_folder, ALONE, interval=60):
        size = path.stat().st_size
        heartbeat.phase("evaluate", 123_456)
    assert path.stat().st_size == size
    assert json.loads(path.read_bytes())["step"] == 123_456
    whole = path.read_bytes()
    for cut in (0, 1, 100):
        path.write_bytes(whole[:cut])
        assert read_beat(path) is None
    path.write_bytes(b'{"rank": 0}')
    assert read_beat(path) is None
    assert read_heartbeats(run_folder) == []


def test_readers_of_a_file_that_is_written_all_the_time_see_whole_beats(run_folder):
    path = beat_path(run_folder, 0)
    with Heartbeat(run_folder, ALONE, interval=60) as beats:
        done = threading.Event()

        def write():
            while not done.is_set():
                beats._write(beats.observe())

        writer = threading.Thread(target=write)
        writer.start()
        seen = [read_beat(path) for _ in range(2000)]
        done.set()
        writer.join()
    counts = [beat.beat for beat in seen if beat is not None]
    assert len(counts) > 1900
    assert counts == sorted(counts)


def test_many_ranks_write_less_often_so_that_all_of_them_write_50_files_a_second():
    assert beat_seconds(5, 8) == 5
    assert beat_seconds(5, 250) == 5
    assert beat_seconds(5, 512) == 10.24


def test_a_folder_that_is_gone_ends_no_training(run_folder, caplog):
    with Heartbeat(run_folder, ALONE, interval=INTERVAL) as beats:
        beats.path.unlink()
        (run_folder / "heartbeats").rmdir()
        until(lambda: caplog.records)
        (run_folder / "heartbeats").mkdir()
        until(beats.path.exists)
    assert len([r for r in caplog.records if "could not be written" in r.message]) == 1


def test_a_hook_that_fails_ends_the_heartbeat_with_a_word_and_is_closed(run_folder, caplog):
    class Broken:
        closed = threading.Event()

        def __call__(self, beat):
            raise RuntimeError("a bug")

        def close(self):
            self.closed.set()

    with Heartbeat(run_folder, ALONE, interval=INTERVAL, hooks=[Broken()]):
        assert Broken.closed.wait(10)
    assert "the heartbeat of rank 0 has ended" in caplog.text


def test_reading_heartbeats_and_the_watchdogs_rows_loads_no_torch():
    script = (
        "import sys; from lmscale.watch.heartbeat import read_heartbeats; "
        "import lmscale.watch.watchdog; "
        "assert read_heartbeats('none') == []; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.gpu
def test_the_device_times_its_own_work(run_folder):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    matrix = torch.ones(4096, 4096, device=device)
    with Heartbeat(run_folder, ALONE, interval=60, recent_steps=1) as beats:
        for _ in range(2):
            with heartbeat.own_work(device):
                for _ in range(20):
                    matrix @ matrix
            torch.cuda.synchronize()
            heartbeat.end_step(0.0)
        assert 1e-4 < beats.observe().forward_seconds < 10


def test_a_listener_hears_every_phase_from_the_one_under_way_on_and_then_nothing_more():
    heartbeat.phase("forward", 1)
    heard = []
    with heartbeat.listening(heard.append):
        heartbeat.phase("backward")
        heartbeat.end_step(0.0)
        thread = threading.Thread(target=heartbeat.phase, args=("save",))
        thread.start()
        thread.join()
    heartbeat.phase("forward", 2)
    assert heard == ["forward", "backward", "hooks"]
