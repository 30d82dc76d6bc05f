"""Spans that stand word for word elsewhere are those that a plain search finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.metrics import spans
from lmscale.metrics.spans import SpanSearch, find_covered, hash_spans, is_copied

DOCUMENTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=5)
TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=10), max_size=4)


def lay(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    return tokens, np.cumsum([len(document) for document in documents])


def stands(span: list[int], documents: list[list[int]]) -> bool:
    size = len(span)
    return any(
        document[place : place + size] == span
        for document in documents
        for place in range(len(document) - size + 1)
    )


@given(DOCUMENTS, TEXTS, st.integers(2, 5), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_spans_are_those_of_a_plain_search_whatever_the_chunk(documents, texts, size, chunk):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spans, "_CHUNK", chunk)
        search = SpanSearch(texts, size)
        search.look(*lay(documents))
    expected = [
        [stands(text[n : n + size], documents) for n in range(len(text) - size + 1)]
        for text in texts
    ]
    assert [met.tolist() for met in search.of_texts()] == expected


@given(DOCUMENTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_hashes_that_collide_change_no_answer(documents, texts):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spans, "hash_spans", lambda tokens, size: hash_spans(tokens, size) * 0)
        search = SpanSearch(texts, 2)
        search.look(*lay(documents))
    expected = [[stands(t[n : n + 2], documents) for n in range(len(t) - 1)] for t in texts]
    assert [met.tolist() for met in search.of_texts()] == expected


def test_no_span_reaches_over_the_end_of_a_document():
    search = SpanSearch([[1, 2, 3, 4]], 2)
    search.look(*lay([[0, 1, 2], [3, 4]]))
    assert search.of_texts()[0].tolist() == [True, False, True]


def test_several_pieces_are_looked_through_one_after_the_other():
    search = SpanSearch([[1, 2, 3]], 2)
    search.look(*lay([[1, 2]]))
    search.look(*lay([[2, 3]]))
    assert search.of_texts()[0].tolist() == [True, True]


def test_a_hash_is_of_the_tokens_wherever_they_stand():
    tokens = np.random.default_rng(0).integers(0, 50_000, 1000)
    hashes = hash_spans(tokens, 20)
    assert len(hashes) == 981 and len(np.unique(hashes)) == 981
    assert hash_spans(tokens[400:420], 20)[0] == hashes[400]
    assert len(hash_spans(tokens[:3], 4)) == 0


def test_tokens_that_are_covered_lie_in_any_span_that_was_met():
    met = np.array([True, False, False, False, True, True])
    assert find_covered(met, 3, 8).tolist() == [True] * 3 + [False] + [True] * 4


def test_tokens_are_copied_where_one_span_holds_them_and_not_where_two_meet_in_them():
    is_met = np.array([True, False, False, True, True, False])  # spans of 3 among 8 tokens
    assert is_copied(is_met, 3, 0, 2) and is_copied(is_met, 3, 1, 2)
    assert not is_copied(is_met, 3, 2, 3)  # the end of one span and the beginning of another
    assert is_copied(is_met, 3, 3, 6) and not is_copied(is_met, 3, 4, 7)
    assert is_copied(is_met, 3, 6, 6) and not is_copied(is_met, 3, 7, 7)
    assert not is_copied(np.zeros(0, dtype=bool), 3, 0, 1)
