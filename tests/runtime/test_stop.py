import os
import signal

import pytest

from lmscale.runtime.stop import StopRequests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_request_and_its_name_the_reason(tmp_path, number):
    with StopRequests(tmp_path) as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), number)
        assert stop.requested() == number.name


def test_the_first_reason_stands(tmp_path):
    with StopRequests(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() == "SIGUSR1"


def test_a_second_interrupt_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt), StopRequests(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_file_is_a_request_until_it_was_obeyed(tmp_path):
    with StopRequests(tmp_path) as stop:
        (tmp_path / "stop").touch()
        assert stop.requested() == "stop file"
        stop.consume_file()
    with StopRequests(tmp_path) as stop:
        assert stop.requested() is None


def test_only_one_rank_watches_the_file(tmp_path):
    (tmp_path / "stop").touch()
    with StopRequests(tmp_path, watch_file=False) as stop:
        assert stop.requested() is None
        stop.consume_file()
    assert (tmp_path / "stop").exists()


def test_the_handlers_before_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(tmp_path):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
