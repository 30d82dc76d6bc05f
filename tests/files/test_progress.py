import time

import pytest

from lmscale.files import progress
from lmscale.files.atomic import sha256_of
from lmscale.files.meter import CountedFile, count, metered
from lmscale.files.progress import progress as telling
from lmscale.tasks.processes import run_tasks

SOON = 60.0


@pytest.mark.parametrize(
    ("total", "unit", "lines"),
    [
        (10, "windows", ("x: 4 of 10 windows, 0 s so far, about 0 s left", "x: 4 windows in 0.")),
        (5e6, "bytes", ("x: 4 B of 5 MB, 0 s so far, about ", "x: 4 B in 0.")),
        (None, "bytes", ("x: 4 B, 0 s so far", "x: 4 B in 0.")),
        (None, "", ("x: 0 s so far", "")),
    ],
)
def test_a_piece_of_work_that_takes_long_is_not_silent(capsys, monkeypatch, total, unit, lines):
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.01)
    deadline, said = time.monotonic() + SOON, ""
    with telling("x", total, unit) as advance:
        advance(4 if unit else 0)
        while lines[0] not in said:
            assert time.monotonic() < deadline, said
            said += capsys.readouterr().err
    assert lines[1] in capsys.readouterr().err


def test_short_work_without_a_unit_says_nothing(capsys):
    with telling("x"):
        pass
    assert capsys.readouterr().err == ""


def test_what_is_read_of_a_file_counts_as_it_is_read_and_never_for_more_than_it_is(tmp_path):
    (tmp_path / "f").write_bytes(bytes(1000))
    heard = []
    with metered(1000, heard.append), open(tmp_path / "f", "rb") as opened:
        file = CountedFile(opened)
        count(16)  # as of who reads something twice
        while file.read(100):
            assert heard
    assert len(heard) > 5
    assert sum(heard) == 1000


def test_what_is_read_twice_counts_once():
    heard = []
    with metered(100, heard.append):
        for _ in range(3):
            count(90)
            assert sum(heard) <= 100
    assert sum(heard) == 100


def test_what_is_hashed_counts_as_it_is_read(tmp_path):
    (tmp_path / "f").write_bytes(bytes(9 << 20))
    heard = []
    with metered(1 << 40, heard.append), open(tmp_path / "f", "rb") as file:
        sha256_of(file)
        count(1 << 38)  # so little is told only with more
    assert heard[0] == (1 << 38) + (9 << 20)


def test_a_block_within_a_block_tells_it_of_all_its_work_though_little_was_counted():
    heard = []
    with metered(100, heard.append):
        for _ in range(2):
            with metered(40):
                count(10)
        assert sum(heard) == 80
    assert sum(heard) == 100


def test_work_that_failed_is_not_told_as_done():
    heard = []
    with pytest.raises(ValueError), metered(100, heard.append):  # noqa: PT011, PT012
        count(30)
        raise ValueError
    count(50)  # of no block
    assert heard == [30]


def do_a_hundred(number):
    with metered(100):
        for _ in range(10):
            count(7)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_what_other_processes_do_counts_in_the_one_that_shows_it(processes):
    heard = []
    with metered(500, heard.append):
        done = [task for task, _ in run_tasks(do_a_hundred, [1, 2, 3, 4], processes=processes)]
        assert sum(heard) == 400
    assert sorted(done) == [1, 2, 3, 4]
