"""One process at a time holds the lock, and a holder that is gone is followed by another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmscale.errors import DataError
from lmscale.tasks import takeover
from lmscale.tasks.takeover import fresh_names, holder_of, take_turn

# Takes the turn, says so, and holds it until a line comes. {setup} may change the module.
HOLDER = """
import sys
from pathlib import Path
from lmscale.tasks import takeover
{setup}
with takeover.take_turn(Path(sys.argv[1])) as turn:
    print("none" if turn is None else "held", flush=True)
    sys.stdin.readline()
    turn.check()
"""
ELSEWHERE = """
from lmscale.watch import process
process._machine = lambda: "another machine"
takeover.BEAT_SECONDS = 0.05
"""


def start_holder(folder: Path, setup: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(setup=setup), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> str:
    """Let it go on; returns what it wrote to stderr."""
    return process.communicate("\n", timeout=300)[1]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(takeover, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(takeover, "POLL_SECONDS", 0.02)


def test_the_lock_is_free_again_after_its_holder_let_go(tmp_path):
    for _ in range(2):
        with take_turn(tmp_path / "lock") as turn:
            assert turn is not None
            turn.check()
            assert str(os.getpid()) in holder_of(tmp_path / "lock")
        assert fresh_names(tmp_path / "lock") == []


def test_a_living_holder_elsewhere_is_left_alone(tmp_path, impatient):
    with start_holder(tmp_path, ELSEWHERE) as holder:
        with take_turn(tmp_path) as turn:
            assert turn is None
        assert end(holder) == ""


def test_a_killed_holder_of_this_machine_is_followed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(takeover, "STALE_SECONDS", 1e9)  # its silence tells nothing
    with start_holder(tmp_path) as holder:
        holder.kill()
        with take_turn(tmp_path) as turn:  # its parent has not even asked how it ended
            assert turn is not None
            turn.check()


def test_a_killed_holder_elsewhere_is_followed_when_it_was_silent_for_long(tmp_path, impatient):
    with start_holder(tmp_path, ELSEWHERE) as holder:
        holder.kill()
        began = time.monotonic()
        with take_turn(tmp_path) as turn:
            assert turn is not None
            assert time.monotonic() - began >= 0.5
            turn.check()


def test_a_holder_that_slept_through_its_turn_is_told_so(tmp_path, impatient):
    with start_holder(tmp_path, ELSEWHERE) as holder:
        holder.send_signal(signal.SIGSTOP)
        with take_turn(tmp_path) as turn:
            assert turn is not None
            holder.send_signal(signal.SIGCONT)
            assert "has taken over. Nothing is lost" in end(holder)
            turn.check()


def test_a_lock_whose_maker_was_killed_before_it_wrote_its_name_is_taken(tmp_path, impatient):
    (tmp_path / "000007.json").touch()
    with take_turn(tmp_path) as turn:
        assert turn is not None
        assert fresh_names(tmp_path) == ["000007.json", "000008.json"]


def test_of_many_that_come_at_once_one_at_a_time_holds_it(tmp_path, impatient):
    """Threads, of which the lock knows nothing: each is a watcher and a holder of its own."""
    inside, most, turns = [], [], []

    def contend():
        for _ in range(5):
            with take_turn(tmp_path) as turn:
                if turn is not None:
                    inside.append(1)
                    most.append(len(inside))
                    turns.append(turn)
                    time.sleep(0.01)
                    turn.check()
                    inside.pop()

    monkey = takeover.BEAT_SECONDS
    takeover.BEAT_SECONDS = 0.005
    try:
        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        takeover.BEAT_SECONDS = monkey
    assert set(most) == {1}
    assert len(turns) > 3


def test_a_holder_whose_number_another_process_has_now_is_known_to_be_gone(tmp_path):
    (tmp_path / "000001.json").write_bytes(
        json.dumps({**json.loads(takeover._identity(0)), "started": "1"}).encode()
    )
    with take_turn(tmp_path) as turn:
        assert turn is not None


def test_names_are_those_that_do_not_begin_with_a_dot(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    assert fresh_names(tmp_path) == ["a", "b"]
    assert fresh_names(tmp_path / "nowhere") == []
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a", "b"]


def test_a_turn_that_was_lost_is_a_data_error(tmp_path):
    with take_turn(tmp_path) as turn:
        (tmp_path / "000009.json").touch()
        with pytest.raises(DataError, match="another process, has taken over"):
            turn.check()
