"""Real runs of real ranks, stopped by SIGSTOP where a driver, a disk or a network would."""

import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked_processes import start_process
from tiny_run import children_of, is_gone, start_lmscale, write_tiny_config

from lmscale.config.training import WatchConfig
from lmscale.files.jsonl import read_rows
from lmscale.ranks.attempt import node_name
from lmscale.ranks.ranks import Ranks
from lmscale.watch.heartbeat import read_heartbeats
from lmscale.watch.standstill import Member
from lmscale.watch.watchdog import WATCH_FILE, group_timeout, open_watch, order_deputies

HOST = node_name()
QUICK = {
    "train.steps": 1_000_000,
    "train.log_every_steps": 100,
    "checkpoint.every_steps": 1_000_000,
    "watch.heartbeat_seconds": 0.2,
    "watch.report_seconds": 3.0,
    "watch.limit_seconds": 4.5,
    "watch.start_limit_seconds": 600.0,
}


def until(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


@contextmanager
def running(tmp_path, data, num_ranks, overrides=None, *, nodes=1):
    """A run in its steps: its launcher, and what each rank's heartbeat says."""
    folder = tmp_path / "run"
    config = write_tiny_config(tmp_path / "tiny.yaml", data, folder, QUICK | (overrides or {}))
    if nodes == 1:
        process = start_lmscale("launch", "local", config, "--nproc", str(num_ranks))
    else:
        process = start_process("script", [Path(__file__).with_name("two_nodes.py"), config])

    def all_step():
        beats = read_heartbeats(folder)
        is_up = len(beats) == num_ranks and not any(beat.is_starting for beat in beats)
        return beats if is_up and min(beat.step for beat in beats) > 3 else None

    try:
        yield process, folder, until(all_step, process)
    finally:
        process.kill()  # the kernel ends its ranks with it
        process.communicate()


def stacks(folder, rank):
    return (folder / "logs" / f"stacks-rank-{rank:05d}.txt").read_text()


def events(folder):
    return [(row["event"], row.get("ranks"), row["by"]) for row in read_rows(folder / WATCH_FILE)]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_loader_worker_that_hangs_is_found_by_its_rank_its_host_and_its_phase(
    tiny_data, tmp_path
):
    exits = tmp_path / "exits"
    exits.mkdir()
    os.environ["LMSCALE_EXITS"] = str(exits)
    try:
        with running(tmp_path, tiny_data, 2, {"stream.workers": 1}) as (process, folder, beats):
            (worker,) = children_of(beats[1].pid)
            os.kill(worker, signal.SIGSTOP)
            output = process.communicate(timeout=60)[0]
    finally:
        del os.environ["LMSCALE_EXITS"]
    assert process.returncode == 1, output
    hang, end = read_rows(folder / WATCH_FILE)
    assert re.fullmatch(
        rf"rank 1 on {HOST} in data for \d+ s, the others wait in agree of step \d+", hang["text"]
    )
    assert (hang["event"], hang["ranks"], hang["hosts"]) == ("hang", [1], [HOST])
    assert (hang["phase"], hang["attempt"], hang["by"]) == ("data", "local", 0)
    assert (end["event"], end["ranks"]) == ("end", [1])
    assert hang["text"] in output and "the run ends" in output
    assert "lmscale/stream/loader.py" in stacks(folder, 1)
    assert "in sum_tensor" in stacks(folder, 0)
    assert f"loader worker, process {worker}: state T (stopped)" in stacks(folder, 1)
    assert [path.read_text() for path in sorted(exits.iterdir())] == ["1\n", "1\n"]
    assert is_gone(worker)


@pytest.mark.ranks
@pytest.mark.slow
def test_rank_0_that_is_stopped_is_named_by_its_deputy_on_the_other_node(tiny_data, tmp_path):
    with running(tmp_path, tiny_data, 3, nodes=2) as (process, folder, beats):
        os.kill(beats[0].pid, signal.SIGSTOP)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert events(folder) == [("hang", [0], 2), ("end", [0], 2)], output
    (text, _) = (row["text"] for row in read_rows(folder / WATCH_FILE))
    assert re.match(rf"rank 0 on {HOST} silent for \d+ s, last in \w+.*, the others wait in ", text)
    assert f"rank 0 on {HOST} silent for" in output  # in the launcher's words on how it ended
    assert "Thread" in stacks(folder, 1) and "Thread" in stacks(folder, 2)
    assert re.search(rf"seen by rank 1 .*\n---- process {beats[0].pid}: state T", stacks(folder, 0))
    assert all(is_gone(beat.pid) for beat in beats)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_straggler_is_named_when_it_begins_and_when_it_ends_and_a_hang_may_pass(
    tiny_data, tmp_path
):
    wide = {
        "watch.straggler_steps": 5,
        "watch.report_seconds": 6.0,  # steps of a rank that is stopped most of the time are long
        "watch.limit_seconds": 60.0,
        "train.log_every_steps": 1,
        "model.width": 128,
        "model.ffn_width": 512,
        "batch.micro_windows": 6,
    }
    with running(tmp_path, tiny_data, 2, wide) as (process, folder, beats):
        pid = beats[1].pid
        done = threading.Event()

        def slow_down():
            while not done.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.02)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)

        brake = threading.Thread(target=slow_down)
        brake.start()
        try:
            until(lambda: ("straggler", [1], 0) in events(folder), process)
        finally:
            done.set()
            brake.join()
        until(lambda: ("pace", [1], 0) in events(folder), process)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: ("hang", [1], 0) in events(folder), process)
        os.kill(pid, signal.SIGCONT)
        until(lambda: ("moving", None, 0) in events(folder), process)
        (folder / "stop").touch()
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    kinds = [event for event, _, _ in events(folder)]  # a busy machine makes stragglers of its own
    assert kinds.index("straggler") < kinds.index("pace") < kinds.index("hang")
    assert [kind for kind in kinds if kind in ("hang", "moving", "end")] == ["hang", "moving"]
    named = next(row for row in read_rows(folder / WATCH_FILE) if row["event"] == "straggler")
    assert named["ratio"] >= 1.5 and named["hosts"] == [HOST]
    assert f"rank 1 on {HOST} is a straggler: its own work takes" in output
    assert "the ranks move again" in output
    figures = (folder / "metrics.jsonl").read_text()
    assert '"speed/slowest_rank": 1.0' in figures and '"speed/slowest_ratio"' in figures


def test_heartbeats_may_be_switched_off(tmp_path):
    threads = threading.active_count()
    with open_watch(tmp_path, WatchConfig(heartbeat_seconds=0), Ranks()):
        assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_start_clears_what_an_earlier_one_with_more_ranks_left(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "rank-00007.json").write_text("{}")
    with open_watch(tmp_path, WatchConfig(), Ranks()):
        names = {path.name for path in (tmp_path / "heartbeats").iterdir()}
        assert names == {"rank-00000.json", "request.json"}
    assert list((tmp_path / "logs").iterdir()) == []


def test_the_first_rank_of_each_node_watches_in_turn_and_two_ranks_at_least():
    def members(*nodes):
        return [
            Member(rank=r, host=f"n{node}", pid=r, is_first_on_node=node not in nodes[:r])
            for r, node in enumerate(nodes)
        ]

    assert order_deputies(members(0, 0, 1, 1, 2)) == [0, 2, 4, 1]
    assert order_deputies(members(0, 0, 0)) == [0, 1]
    assert order_deputies(members(0, 1)) == [0, 1]
    assert order_deputies(members(0)) == [0]


def test_collectives_wait_longer_than_the_watchdog():
    longer = WatchConfig(limit_seconds=7200)
    assert group_timeout(WatchConfig()).total_seconds() == 3600 + 120  # a start may take so long
    assert group_timeout(longer).total_seconds() == 7200 + 120
    short = WatchConfig(
        heartbeat_seconds=1, report_seconds=5, limit_seconds=10, start_limit_seconds=10
    )
    assert group_timeout(short).total_seconds() == 600


@pytest.mark.parametrize("key", ["heartbeat_seconds", "limit_seconds", "start_limit_seconds"])
def test_collectives_wait_a_day_where_the_watchdog_may_wait_for_ever(key):
    assert group_timeout(WatchConfig(**{key: 0})).total_seconds() == 86_400
