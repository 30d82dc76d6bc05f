import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lmscale.runs.stop import SAME_REQUEST_SECONDS, SAVE_SIGNAL, StopRequests

SOON = 120.0  # a signal takes its way through another thread


def send(stop, number):
    os.kill(os.getpid(), number)
    return stop.wait(SOON)


def ask_for_save(stop):
    os.kill(os.getpid(), SAVE_SIGNAL)
    wait_for_save(stop)


def wait_for_save(stop):
    deadline = time.monotonic() + SOON
    while not stop.save_asked():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class FakeClock:
    """``time`` with another ``monotonic``."""

    sleep = staticmethod(time.sleep)

    def __init__(self, monotonic):
        self.monotonic = monotonic


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_request_and_its_name_the_reason(tmp_path, number):
    with StopRequests(tmp_path) as stop:
        assert stop.requested() is None
        assert send(stop, number) == number.name
        assert stop.requested() == number.name


def test_the_first_reason_stands_and_a_second_signal_changes_nothing(tmp_path):
    with StopRequests(tmp_path) as stop:
        assert send(stop, signal.SIGUSR1) == "SIGUSR1"
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert stop.requested() == "SIGUSR1"


def test_a_second_interrupt_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt), StopRequests(tmp_path) as stop:
        send(stop, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            time.sleep(0.01)


def test_a_person_who_asks_is_answered_at_once_and_who_asks_again_as_well(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lmscale")

    def heard(words):
        deadline = time.monotonic() + SOON
        while not any(words in message for message in caplog.messages):
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), StopRequests(tmp_path):
        os.kill(os.getpid(), signal.SIGUSR1)
        heard("SIGUSR1: stops after the step under way, if there is one, and saves it")
        os.kill(os.getpid(), signal.SIGINT)
        heard("SIGINT: stops after the step under way, if there is one, and saves it; Ctrl-C again")
        os.kill(os.getpid(), signal.SIGINT)
        heard("Ctrl-C again: the run ends at once")
    assert len(caplog.messages) == 3


def test_sigusr2_asks_for_a_save_and_ends_nothing(tmp_path):
    with StopRequests(tmp_path) as stop:
        stop.leave_unless(lambda: False)  # at the start, when other signals end the process
        assert not stop.save_asked()
        ask_for_save(stop)
        stop.wait_to_be_asked()
        assert stop.save_asked(), "until a save begins"
        assert stop.requested() is None
        stop.obey_save(4)
        assert not stop.save_asked()


def test_a_second_signal_so_soon_after_asked_for_the_same_save(tmp_path, monkeypatch):
    """One scancel reaches the ranks one after the other, and a step may end in between."""
    now = [1000.0]
    monkeypatch.setattr("lmscale.runs.stop.time", FakeClock(lambda: now[0]))
    with StopRequests(tmp_path) as stop:
        stop.obey_save(4)  # another rank had heard of it before
        now[0] += SAME_REQUEST_SECONDS - 0.1
        os.kill(os.getpid(), SAVE_SIGNAL)
        assert send(stop, signal.SIGUSR1) == "SIGUSR1"  # behind which the other one was heard
        assert not stop.save_asked()
        now[0] += 0.1
        ask_for_save(stop)


def test_a_save_file_asks_until_a_save_begins_and_the_next_attempt_until_it_is_committed(tmp_path):
    (tmp_path / "save").touch()
    with StopRequests(tmp_path) as stop:
        stop.discard_stale_file()
        assert stop.save_asked(), "from before the start: nobody has answered it yet"
        assert stop.requested() is None
        stop.obey_save(4)
        for committed_step in (None, 2):
            stop.consume_save(committed_step)
            assert not stop.save_asked() and (tmp_path / "save").exists()
    with StopRequests(tmp_path) as stop:
        assert stop.save_asked(), "the save was cut off"
        stop.obey_save(6)
        stop.consume_save(6)
        assert not stop.save_asked() and not (tmp_path / "save").exists()
        (tmp_path / "save").touch()
        stop.consume_save(6)
        assert stop.save_asked()


def test_a_save_file_that_is_touched_while_the_save_is_written_asks_for_another_one(tmp_path):
    (tmp_path / "save").touch()
    with StopRequests(tmp_path) as stop:
        stop.obey_save(4)
        os.utime(tmp_path / "save", ns=(1, 1))
        assert stop.save_asked()
        stop.consume_save(4)
        assert stop.save_asked() and (tmp_path / "save").exists()
        stop.obey_save(5)
        stop.consume_save(5)
        assert not stop.save_asked() and not (tmp_path / "save").exists()


def test_a_save_file_that_cannot_be_removed_asks_once_for_each_time_it_is_touched(tmp_path, caplog):
    (tmp_path / "save").mkdir()
    with StopRequests(tmp_path) as stop:
        assert stop.save_asked()
        stop.obey_save(4)
        stop.consume_save(4)
        assert not stop.save_asked()
        assert f"{tmp_path}/save cannot be removed" in caplog.text
        os.utime(tmp_path / "save", ns=(1, 1))
        assert stop.save_asked()


def test_a_stop_file_that_cannot_be_removed_is_obeyed_once(tmp_path, caplog):
    with StopRequests(tmp_path) as stop:
        (tmp_path / "stop").mkdir()
        assert stop.requested() == "stop file"
        stop.consume_file()
    assert f"{tmp_path}/stop cannot be removed" in caplog.text
    with StopRequests(tmp_path) as stop:
        stop.discard_stale_file()
        assert stop.requested() is None


def test_only_the_rank_that_watches_the_save_file_sees_and_removes_it(tmp_path):
    (tmp_path / "save").touch()
    with StopRequests(tmp_path, watch_file=False) as stop:
        assert not stop.save_asked()
        stop.obey_save(4)
        stop.consume_save(4)
    assert (tmp_path / "save").exists()


def test_a_save_that_was_asked_for_before_anybody_listened_is_remembered(tmp_path):
    """A launcher starts a rank with the signal blocked: in a process without other threads."""
    program = """
        import os, signal, sys, time
        from lmscale.runs.stop import SAVE_SIGNAL, StopRequests

        signal.pthread_sigmask(signal.SIG_BLOCK, [SAVE_SIGNAL])
        os.kill(os.getpid(), SAVE_SIGNAL)
        with StopRequests(sys.argv[1]) as stop:
            deadline = time.monotonic() + float(sys.argv[2])
            while not stop.save_asked() and time.monotonic() < deadline:
                time.sleep(0.01)
            sys.exit(0 if stop.save_asked() else 1)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(SOON)]
    assert subprocess.run(arguments, check=False).returncode == 0


def test_a_stop_file_is_a_request_until_it_was_obeyed(tmp_path):
    with StopRequests(tmp_path) as stop:
        (tmp_path / "stop").touch()
        assert stop.requested() == "stop file"
        stop.consume_file()
    with StopRequests(tmp_path) as stop:
        assert stop.requested() is None


def test_a_stop_file_from_before_the_start_is_removed_and_not_obeyed(tmp_path):
    (tmp_path / "stop").touch()
    with StopRequests(tmp_path) as stop:
        assert stop.requested() is None
        stop.discard_stale_file()
        assert not (tmp_path / "stop").exists()
        (tmp_path / "stop").touch()
        assert stop.requested() == "stop file"


def test_an_old_stop_file_that_is_touched_again_is_a_request(tmp_path):
    (tmp_path / "stop").touch()
    with StopRequests(tmp_path) as stop:
        os.utime(tmp_path / "stop", ns=(1, 1))
        stop.discard_stale_file()
        assert stop.requested() == "stop file"


def test_only_one_rank_watches_the_file_unless_another_one_waits(tmp_path):
    with StopRequests(tmp_path, watch_file=False) as stop:
        (tmp_path / "stop").touch()
        assert stop.requested() is None
        stop.consume_file()
        stop.discard_stale_file()
        assert (tmp_path / "stop").exists()
        assert stop.requested(is_waiting=True) == "stop file"


def test_the_handlers_and_the_mask_before_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with StopRequests(tmp_path):
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    after = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert after == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_a_rank_starts_is_not_hit_by_its_signals(tmp_path):
    """Such as a compiler, or git: `scancel --signal` reaches every process of a job step."""
    with StopRequests(tmp_path):
        with subprocess.Popen([sys.executable, "-c", "input(); print('whole')"], **PIPES) as child:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
                os.kill(child.pid, number)
            assert child.communicate("\n")[0] == "whole\n"


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
# Native code that no handler interrupts, as a collective that waits for the other ranks.
STUCK = """
    import ctypes, os, pathlib, signal, sys, threading
    from lmscale.runs.stop import StopRequests
    folder = pathlib.Path(sys.argv[1])
    with StopRequests(folder) as stop:
        stop.leave_unless(lambda: False, lambda reason: (folder / "finished").write_text(reason))
        print("ready", flush=True)
        ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_with_nothing_to_save_a_signal_ends_the_process_at_once(tmp_path, number):
    environment = {**os.environ, "LMSCALE_EXITS": str(tmp_path), "RANK": "3"}
    argv = [sys.executable, "-c", textwrap.dedent(STUCK), str(tmp_path)]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, **PIPES) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert said == f"stopped by {number.name}; there was nothing to save\n"
    assert (tmp_path / "finished").read_text() == number.name
    assert (tmp_path / "rank-00003").read_text() == "75\n"


def test_a_signal_that_came_before_there_was_nothing_to_save_is_not_forgotten(tmp_path):
    program = """
        import os, signal, sys
        from lmscale.runs.stop import StopRequests
        with StopRequests(sys.argv[1]) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(10) == "SIGTERM"
            stop.leave_unless(lambda: False)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(argv, capture_output=True).returncode == 75


def test_when_all_is_done_a_signal_does_not_change_how_the_process_ends(tmp_path):
    program = """
        import os, signal, sys
        from lmscale.runs.stop import StopRequests
        with StopRequests(sys.argv[1]) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.ignore_from_here()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(os.getpid(), number)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(argv, capture_output=True).returncode == 0
