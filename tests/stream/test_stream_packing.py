from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.stream.packing import count_concat, plan_best_fit

lengths_of_documents = st.lists(st.integers(1, 50), min_size=0, max_size=40)
sequence_lengths = st.integers(2, 24)


@pytest.mark.parametrize(
    ("tokens", "windows"), [(0, 0), (1, 0), (2, 1), (9, 1), (10, 2), (17, 2), (18, 3)]
)
def test_concat_counts_a_window_for_every_started_sequence_of_targets(tokens, windows):
    assert count_concat(tokens, 8) == windows


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_documents, sequence_length=sequence_lengths)
def test_best_fit_holds_every_target_and_every_token_of_every_document(lengths, sequence_length):
    starts, tokens, _ = plan_best_fit(np.array(lengths, dtype=np.int64), sequence_length)
    seen, targets = set(), Counter()
    for start, count in zip(starts.tolist(), tokens.tolist(), strict=True):
        seen.update(range(start, start + count))
        targets.update(range(start + 1, start + count))
    begins = set((np.cumsum(lengths, dtype=np.int64) - lengths).tolist())
    assert seen == set(range(sum(lengths)))
    assert targets == Counter(p for p in range(sum(lengths)) if p not in begins)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_documents, sequence_length=sequence_lengths)
def test_best_fit_windows_are_consecutive_and_never_overfull(lengths, sequence_length):
    _, tokens, windows = plan_best_fit(np.array(lengths, dtype=np.int64), sequence_length)
    assert (np.diff(windows) >= 0).all()
    if len(windows):
        assert set(windows.tolist()) == set(range(windows[-1] + 1))
        assert np.bincount(windows, weights=tokens).max() <= sequence_length + 1


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of_documents, sequence_length=sequence_lengths)
def test_best_fit_never_cuts_a_document_that_fits(lengths, sequence_length):
    starts, tokens, _ = plan_best_fit(np.array(lengths, dtype=np.int64), sequence_length)
    pieces = set(zip(starts.tolist(), tokens.tolist(), strict=True))
    for start, length in zip((np.cumsum(lengths) - lengths).tolist(), lengths, strict=True):
        if length <= sequence_length + 1:
            assert (start, length) in pieces


def test_best_fit_chooses_the_fullest_window_that_fits():
    _, tokens, windows = plan_best_fit(np.array([6, 7, 3, 2, 1]), 9)
    packed = [sorted(tokens[windows == w].tolist()) for w in range(windows[-1] + 1)]
    assert packed == [[3, 7], [1, 2, 6]]


def test_best_fit_leaves_almost_no_padding():
    lengths = np.random.default_rng(0).exponential(700, 12_000).astype(np.int64) + 1
    _, tokens, windows = plan_best_fit(lengths, 2048)
    capacity = (windows[-1] + 1) * 2049
    assert 1 - tokens.sum() / capacity < 0.001
