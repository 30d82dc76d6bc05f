from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.data import WindowShape
from lmscale.stream.packing import count_concat, plan_best_fit

shapes = st.builds(WindowShape, stride=st.integers(2, 24), overlap=st.integers(0, 1))
lengths_of_documents = st.lists(st.integers(1, 50), min_size=0, max_size=40)


@pytest.mark.parametrize(
    ("tokens", "overlapping", "apart"),
    [(0, 0, 0), (1, 0, 1), (2, 1, 1), (8, 1, 1), (9, 1, 2), (10, 2, 2), (17, 2, 3), (18, 3, 3)],
)
def test_concat_counts_a_window_for_every_started_stride_of_targets(tokens, overlapping, apart):
    assert count_concat(tokens, WindowShape(stride=8, overlap=1)) == overlapping
    assert count_concat(tokens, WindowShape(stride=8, overlap=0)) == apart


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_documents, shape=shapes)
def test_best_fit_holds_every_target_and_every_token_of_every_document(lengths, shape):
    starts, tokens, _ = plan_best_fit(np.array(lengths, dtype=np.int64), shape)
    seen, targets = set(), Counter()
    for start, count in zip(starts.tolist(), tokens.tolist(), strict=True):
        seen.update(range(start, start + count))
        targets.update(range(start + shape.overlap, start + count))
    # Where the next token is predicted, nothing predicts a document's first one.
    firsts = (np.cumsum(lengths, dtype=np.int64) - lengths).tolist()
    begins = set(firsts if shape.overlap else ())
    assert seen == set(range(sum(lengths)))
    assert targets == Counter(p for p in range(sum(lengths)) if p not in begins)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_documents, shape=shapes)
def test_best_fit_windows_are_consecutive_and_never_overfull(lengths, shape):
    _, tokens, windows = plan_best_fit(np.array(lengths, dtype=np.int64), shape)
    assert (np.diff(windows) >= 0).all()
    if len(windows):
        assert set(windows.tolist()) == set(range(windows[-1] + 1))
        assert np.bincount(windows, weights=tokens).max() <= shape.tokens


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of_documents, shape=shapes)
def test_best_fit_never_cuts_a_document_that_fits(lengths, shape):
    starts, tokens, _ = plan_best_fit(np.array(lengths, dtype=np.int64), shape)
    pieces = set(zip(starts.tolist(), tokens.tolist(), strict=True))
    for start, length in zip((np.cumsum(lengths) - lengths).tolist(), lengths, strict=True):
        if length <= shape.tokens:
            assert (start, length) in pieces


def test_best_fit_chooses_the_fullest_window_that_fits():
    _, tokens, windows = plan_best_fit(np.array([6, 7, 3, 2, 1]), WindowShape(stride=9, overlap=1))
    packed = [sorted(tokens[windows == w].tolist()) for w in range(windows[-1] + 1)]
    assert packed == [[3, 7], [1, 2, 6]]


def test_best_fit_leaves_almost_no_padding():
    lengths = np.random.default_rng(0).exponential(700, 12_000).astype(np.int64) + 1
    _, tokens, windows = plan_best_fit(lengths, WindowShape(stride=2048, overlap=1))
    capacity = (windows[-1] + 1) * 2049
    assert 1 - tokens.sum() / capacity < 0.001
