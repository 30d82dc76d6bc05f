import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.stream.order import SourceOrder, permute, philox_key


def build_order(counts, *, window_shards=2, seed=1, source="a"):
    return SourceOrder(np.array(counts), seed=seed, source=source, window_shards=window_shards)


def pairs(order, first, count):
    shards, windows = order.locate(first, count)
    return list(zip(shards.tolist(), windows.tolist(), strict=True))


def test_a_permutation_is_the_same_for_ever():
    # Recorded. If this fails, every run in the world would change its data on resume.
    assert permute(10, 1, "a", 0).tolist() == [9, 0, 2, 6, 7, 8, 1, 5, 4, 3]
    assert permute(3, "windows", "网络", 2**40).tolist() == [2, 0, 1]


def test_equal_words_keep_their_order(monkeypatch: pytest.MonkeyPatch):
    class Constant:
        def __init__(self, key):
            pass

        def random_raw(self, count):
            return np.arange(count, dtype=np.uint64)[::-1] // np.uint64(50)

    monkeypatch.setattr(np.random, "Philox", Constant)
    words = Constant(0).random_raw(200)
    assert permute(200, 1).tolist() == np.argsort(words, kind="stable").tolist()


def test_keys_of_different_parts_never_meet():
    parts = [(1, "a", 12, 3), (1, "a", 1, 23), (11, "a", 2, 3), (1, "a1", 2, 3), (1, "a", 123)]
    parts += [
        (seed, "a", epoch, window) for seed in range(5) for epoch in range(9) for window in range(9)
    ]
    keys = {philox_key(*part).tobytes() for part in parts}
    assert len(keys) == len(set(parts))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    window_shards=st.integers(1, 12),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_epoch_holds_every_window_once(counts, window_shards, seed):
    order = build_order(counts, window_shards=window_shards, seed=seed)
    everything = {(shard, window) for shard, n in enumerate(counts) for window in range(n)}
    for epoch in range(3):
        drawn = pairs(order, epoch * order.total, order.total)
        assert len(drawn) == len(everything)
        assert set(drawn) == everything


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 300), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_reading_in_pieces_gives_what_reading_at_once_gives(first, cuts):
    counts = [5, 0, 7, 1, 4]
    whole = pairs(build_order(counts), first, sum(cuts))
    pieces = []
    for cut in cuts:
        pieces += pairs(build_order(counts), first + len(pieces), cut)
    assert pieces == whole


def test_epochs_seeds_and_sources_are_shuffled_differently():
    orders = [
        pairs(build_order([20, 20, 20]), 0, 60),
        pairs(build_order([20, 20, 20]), 60, 60),
        pairs(build_order([20, 20, 20], seed=2), 0, 60),
        pairs(build_order([20, 20, 20], source="b"), 0, 60),
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_only_window_shards_shards_are_read_at_a_time():
    order = build_order([10] * 9, window_shards=3)
    for group in range(3):
        assert len(set(order.locate(group * 30, 30)[0].tolist())) == 3


def test_what_is_fetched_ahead_is_what_is_read_next():
    order = build_order([10, 10, 10, 0, 10, 10], window_shards=2)
    for index in (0, 17, 33, 49, 50):
        group_end = set(order.locate(index, 8)[0].tolist())
        assert group_end <= set(order.shards_ahead(index))


def test_one_shard_and_one_window_make_an_endless_stream():
    assert pairs(build_order([1]), 10**9, 3) == [(0, 0)] * 3


def test_a_far_position_is_found_by_as_many_calls_as_a_near_one():
    counts = [31_250] * 1000  # shards of 64M tokens at T = 2048; a group of 8 has 250,000 windows

    def num_calls(index):
        calls = []
        order = build_order(counts, window_shards=8)
        sys.setprofile(lambda frame, event, argument: calls.append(event))
        try:
            order.locate(index, 1)
        finally:
            sys.setprofile(None)
        return len(calls)

    near = max(num_calls(n) for n in range(5))
    assert max(num_calls(10**9 + n) for n in range(5)) < 2 * near
