import math
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import DataError
from lmscale.files.jsonl import (
    append_durable_row,
    append_row,
    append_rows,
    mend_tail,
    read_rows,
    renew_rows,
    sift_rows,
)
from lmscale.files.run_rows import STEP


def test_rows_come_back_in_order(tmp_path):
    for step in range(3):
        append_row(tmp_path / "a", {"step": step, "text": "é"})
    assert [row["step"] for row in read_rows(tmp_path / "a")] == [0, 1, 2]


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "a") == sift_rows(tmp_path / "a", STEP).rows == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_null(tmp_path, value):
    append_row(tmp_path / "a", {"loss": value})
    assert read_rows(tmp_path / "a") == [{"loss": None}]


@pytest.mark.parametrize("append", [append_row, append_durable_row])
def test_a_row_with_any_bit_flipped_is_no_row_or_the_same_row(tmp_path, append):
    row = {"step": 12, "why": "a spike", "jump": 340}
    append(tmp_path / "a", row)
    content = (tmp_path / "a").read_bytes()
    for bit in range(8 * (len(content) - 1)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a").write_bytes(flipped)
        for found in sift_rows(tmp_path / "a", STEP).rows:
            assert found.items() >= row.items(), bit


@given(cut=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_a_file_cut_anywhere_reads_as_its_whole_lines(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a"
    for step in range(5):
        append_row(path, {"step": step})
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    steps = list(range(content.count(b"\n")))
    assert [row["step"] for row in read_rows(path)] == steps
    mend_tail(path)
    append_row(path, {"step": 99})
    assert [row["step"] for row in read_rows(path)] == [*steps, 99]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "a").write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(DataError, match="line 2: not a JSON object"):
        read_rows(tmp_path / "a")


def test_dropping_rows_also_drops_a_torn_line(tmp_path):
    (tmp_path / "a").write_text('{"step": 1}\n{"step": 2}\n{"st')
    renew_rows(tmp_path / "a", 1).close()
    assert (tmp_path / "a").read_text() == '{"step": 1}\n'


def test_the_tail_of_a_long_file_is_whole_lines(tmp_path):
    (tmp_path / "a").write_text("".join(f'{{"step": {n}}}\n' for n in range(20_000)))
    found = sift_rows(tmp_path / "a", STEP, max_bytes=1 << 16)
    steps = [row["step"] for row in found.rows]
    assert found.problems == []
    assert steps == list(range(steps[0], 20_000))
    assert len(steps) > 1000


def test_a_long_file_is_never_held_whole(tmp_path):
    padding = "x" * 2000
    append_rows(tmp_path / "a", [{"step": step, "text": padding} for step in range(4000)])
    append_row(tmp_path / "a", {"step": 4000, "loss": 1.0})
    tracemalloc.start()
    try:
        found = sift_rows(tmp_path / "a", STEP, having="loss")
        renew_rows(tmp_path / "a", 3999).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["step"] for row in found.rows] == [4000]
    assert peak < (tmp_path / "a").stat().st_size / 8


def test_a_row_for_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="No such device"):
        append_row(tmp_path / "a", {"step": 1})


def test_a_name_that_is_no_utf_8_is_written_and_comes_back(tmp_path):
    append_row(tmp_path / "a", {"step": 1, "file": "caf\udce9"})
    assert read_rows(tmp_path / "a") == [{"step": 1, "file": "caf\udce9"}]
