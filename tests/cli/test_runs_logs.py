"""Logs of many ranks read as one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.cli.runs.logs import PIECE_BYTES, LogFiles


def stamp(second: int) -> str:
    return f"2026-11-22T01:{second // 60:02d}:{second % 60:02d}.000"


def write(folder: Path, rank: int, *lines: str, mode: str = "w") -> Path:
    path = folder / f"rank-{rank:05d}.log"
    with open(path, mode) as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def read(files: LogFiles, *, with_torn: bool = False) -> list[tuple[int, str]]:
    return [(line.number[0], line.text) for line in files.read(with_torn=with_torn)]


@pytest.fixture
def files(tmp_path):
    return LogFiles(tmp_path, "rank-*.log")


def test_lines_are_in_the_order_of_time_and_those_without_one_stay_with_the_line_before(
    tmp_path, files
):
    write(tmp_path, 0, f"{stamp(1)} a", f"{stamp(5)} b", "Traceback", "  more", f"{stamp(9)} c")
    write(tmp_path, 1, f"{stamp(2)} d", "and more", f"{stamp(5)} e", f"{stamp(6)} f")
    texts = [(rank, text.removeprefix("2026-11-22T01:00:")) for rank, text in read(files)]
    assert texts == [
        (0, "01.000 a"),
        (1, "02.000 d"),
        (1, "and more"),
        (0, "05.000 b"),
        (0, "Traceback"),
        (0, "  more"),
        (1, "05.000 e"),
        (1, "06.000 f"),
        (0, "09.000 c"),
    ]


def test_following_finds_new_lines_new_ranks_and_files_begun_anew(tmp_path, files):
    path = write(tmp_path, 0, f"{stamp(1)} a")
    assert len(read(files)) == 1
    assert read(files) == []
    with open(path, "a") as file:
        file.write(f"{stamp(2)} half")
    assert read(files) == []  # whole lines only
    with open(path, "a") as file:
        file.write(" and half\n")
    write(tmp_path, 7, f"{stamp(3)} new")
    assert read(files) == [(0, f"{stamp(2)} half and half"), (7, f"{stamp(3)} new")]
    write(tmp_path, 0, f"{stamp(4)} again")
    assert read(files) == [(0, f"{stamp(4)} again")]


def test_a_last_line_without_an_end_is_shown_to_who_does_not_follow(tmp_path, files):
    (tmp_path / "rank-00000.log").write_text(f"{stamp(1)} a\n{stamp(2)} torn")
    assert len(read(files, with_torn=True)) == 2


def test_bytes_that_are_no_text_and_a_clock_set_back_do_no_harm(tmp_path, files):
    path = write(tmp_path, 0, f"{stamp(5)} a", f"{stamp(3)} set back")
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    write(tmp_path, 1, f"{stamp(4)} b")
    assert [rank for rank, _ in read(files)] == [1, 0, 0, 0]


def test_files_of_a_chain_come_one_after_another_by_their_numbers(tmp_path):
    for job in (9, 10, 100):
        (tmp_path / f"job-{job}.out").write_text(f"of {job}\n")
    files = LogFiles(tmp_path, "job-*.out", by_time=False)
    assert [text for _, text in read(files)] == ["of 9", "of 10", "of 100"]


@pytest.mark.parametrize("count", [1, 2, 7, 100, 5_000])
def test_the_last_lines_are_the_same_as_at_the_end_of_all_lines(tmp_path, count):
    long = "x" * 200  # several pieces of a file
    for rank in range(3):
        lines = [f"{stamp(n)} {rank} {long}" for n in range(rank, 900)]
        assert sum(map(len, lines)) > 2 * PIECE_BYTES
        write(tmp_path, rank, *lines)
    everything = list(LogFiles(tmp_path, "rank-*.log").read(with_torn=False))
    files = LogFiles(tmp_path, "rank-*.log")
    files.skip_to_last(count)
    assert list(files.read(with_torn=False))[-count:] == everything[-count:]


lines = st.lists(st.none() | st.integers(0, 50), max_size=8)


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(lines, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 200), max_size=5)
)
def test_nothing_is_lost_or_turned_round_however_the_files_grow(ranks, cuts):
    """None is a line without a time; the cuts are where the writers pause."""
    contents = []
    for rank, times in enumerate(ranks):
        ordered = iter(sorted(t for t in times if t is not None))
        named = [f"{stamp(next(ordered))} " if t is not None else "" for t in times]
        contents.append("".join(f"{n}rank {rank} line {i}\n" for i, n in enumerate(named)))
    whole = [text for content in contents for text in content.splitlines()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, seen = LogFiles(folder, "rank-*.log"), []
        for cut in [*sorted(cuts), 10_000]:
            for rank, content in enumerate(contents):
                (folder / f"rank-{rank:05d}.log").write_text(content[:cut])
            seen += read(files)
        assert sorted(text for _, text in seen) == sorted(whole)
        for rank, content in enumerate(contents):
            assert [text for r, text in seen if r == rank] == content.splitlines()
        at_once = list(LogFiles(folder, "rank-*.log").read(with_torn=False))
        assert [line.time for line in at_once] == sorted(line.time for line in at_once)
