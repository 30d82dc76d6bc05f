"""Duplicates across the parts of a source, found from their indexes."""

from __future__ import annotations

import os
import resource
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.corpus.clean import digest_of
from lmscale.corpus.duplicates import dropped_lines, find_duplicates, index_row, write_index


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 30), unique=True), min_size=1, max_size=6),
    range_rows=st.integers(1, 20),
)
def test_duplicates_are_found_in_ranges_as_at_once(tmp_path_factory, parts, range_rows):
    folder = tmp_path_factory.mktemp("index")
    seen, expected = set(), []
    for number, texts in enumerate(parts):
        numbers, line, lost = array("Q"), 0, []
        for text in texts:
            lines = 1 + text % 3
            digest = digest_of(str(text))
            numbers.extend(index_row(digest, "train", line, lines, is_cut=lines > 1))
            if text in seen:
                lost += range(line, line + lines)
            line += lines
        seen |= set(texts)
        write_index(folder / f"{number}.npy", numbers)
        expected.append(lost)
    indexes = [folder / f"{number}.npy" for number in range(len(parts))]
    found = find_duplicates(indexes, range_rows=range_rows)
    lines = [dropped_lines(i, c)[0] for i, c in zip(indexes, found, strict=True)]
    assert [part["train"].tolist() for part in lines] == expected
    assert not any(len(part["heldout"]) for part in lines)


def test_indexes_of_any_number_of_parts_are_compared_with_a_few_files_open(tmp_path):
    """As of 1,024 and more: no view keeps the map of a part's index open."""
    indexes = []
    for number in range(60):
        numbers = array("Q")
        for text in (f"own {number}", "in all parts"):
            numbers.extend(index_row(digest_of(text), "train", 0, 1, is_cut=False))
        indexes.append(tmp_path / f"{number}.npy")
        write_index(indexes[-1], numbers)
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(len(taken) + 21) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[20], old[1]))
    try:
        found = find_duplicates(indexes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert [len(columns) for columns in found] == [0] + [1] * 59
