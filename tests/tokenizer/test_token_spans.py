"""The tokens that cover a stretch of a text, and the stretch that tokens stand for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from others import CHINESE, ENGLISH, train_wordpiece

from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.importing import import_tokenizer
from lmscale.tokenizer.spans import find_characters, find_tokens

TEXT = f"{ENGLISH[0][:300]} {CHINESE[0]} 😀é {ENGLISH[1][:200]}"
edges = st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, len(TEXT) - 1)).map(sorted)


@pytest.fixture(scope="module")
def exact(tiny_data):
    return load_tokenizer(tiny_data / "tokenizer")


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    root = tmp_path_factory.mktemp("wordpiece")
    (root / "bert.json").write_text(train_wordpiece().to_str(), encoding="utf-8")
    import_tokenizer(root / "bert.json", root / "tokenizer")
    return load_tokenizer(root / "tokenizer")


@settings(max_examples=60, deadline=None)
@given(edges)
def test_tokens_cover_what_they_were_asked_for_and_no_token_more(exact, span):
    begin, end = span[0], span[1] + 1
    ids = exact.encode(TEXT)
    first, last = find_tokens(exact, TEXT, ids, begin, end)
    assert TEXT[begin:end] in exact.decode(ids[first : last + 1]).replace("\ufffd", "") or (
        TEXT[begin:end].encode() in exact.decode_bytes(ids[first : last + 1])
    )
    if last > first:
        for fewer in (ids[first + 1 : last + 1], ids[first:last]):
            before = exact.decode_bytes(ids[: first + (len(fewer) and fewer[0] != ids[first])])
            assert len(exact.decode_bytes(fewer)) < len(
                exact.decode_bytes(ids[first : last + 1])
            ) and len(before) <= len(TEXT.encode())
    a, b = find_characters(exact, TEXT, ids, first, last)
    wanted = TEXT[begin:end].strip()
    assert wanted in TEXT[a:b]
    assert TEXT[a:b] == TEXT[a:b].strip()


@settings(max_examples=40, deadline=None)
@given(edges)
def test_of_a_tokenizer_that_is_not_exact_whole_words_are_covered(lossy, span):
    begin, end = span[0], span[1] + 1
    ids = lossy.encode(TEXT)
    first, last = find_tokens(lossy, TEXT, ids, begin, end)
    assert 0 <= first <= last < len(ids)
    a, b = find_characters(lossy, TEXT, ids, first, last)
    assert TEXT[begin:end].strip() in TEXT[a:b]
    # No more than the words that the stretch has a part of.
    inside = TEXT[begin:end].strip()
    if inside and inside.isascii() and inside.replace(" ", "").isalnum():
        assert len(TEXT[a:b].split()) <= len(inside.split()) + 2


def test_a_word_is_found_without_its_neighbours(exact, lossy):
    text = "It was in Paris, France; 北京的冬天。"
    for tokenizer, word in ((exact, "Paris"), (lossy, "Paris"), (lossy, "京")):
        begin, ids = text.index(word), tokenizer.encode(text)
        span = find_tokens(tokenizer, text, ids, begin, begin + len(word))
        a, b = find_characters(tokenizer, text, ids, *span)
        assert text[a:b] == word
