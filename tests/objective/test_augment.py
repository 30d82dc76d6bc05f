"""Words of labelled texts are left out and swapped in training, and nowhere else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_data import ENCODERS
from test_pairs import open_for, run_config

from lmscale.config import parse_config
from lmscale.config.augment import AugmentConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.perplexity import plan_evaluation
from lmscale.objective.augment import AugmentedPreparation, augment, mark_words
from lmscale.objective.labelled import LabelledPreparation
from lmscale.objective.objective import build_preparation
from lmscale.objective.pieces import draw_by_place, find_pieces
from lmscale.objective.token_kinds import token_kinds
from lmscale.stream.batches import Rows
from lmscale.stream.order import philox_key
from lmscale.tokenizer.codec import load_tokenizer

WORDS = 40  # of a text of the tests' own


@pytest.fixture(scope="module")
def tokenizer(labelled):
    return load_tokenizer(labelled.tokenizer.folder)


def rows_of(tokenizer, texts: list[tuple[str, ...]], *, first: int = 0) -> Rows:
    """Each text, or pair, a document in a row of its own."""
    documents = [
        [tokenizer.bos_id, *(i for part in parts for i in tokenizer.encode(part)), tokenizer.eos_id]
        for parts in texts
    ]
    width = max(map(len, documents)) + 3
    tokens = np.full((len(texts), width), tokenizer.pad_id, dtype=np.uint16)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = document
    firsts = [1 + len(tokenizer.encode(parts[0])) for parts in texts]
    members = {"parts": np.array(firsts, dtype=np.int32)} if len(texts[0]) > 1 else {}
    return Rows(
        numbers=np.arange(first, first + len(texts)),
        tokens=tokens,
        lengths=np.array([len(each) for each in documents], dtype=np.int32),
        starts=np.arange(len(texts), dtype=np.int32) * width,
        digests=np.zeros(len(texts), dtype=np.uint64),
        members={"labels": np.arange(len(texts), dtype=np.int32), **members},
    )


def changed(tokenizer, rows: Rows, *, seed: int = 1, **given: float) -> Rows:
    words = draw_by_place(philox_key(seed, "augment"), rows)
    config = AugmentConfig(**given)
    return augment(rows, words, config, token_kinds(tokenizer), mark_words(tokenizer))


def texts_of(tokenizer, rows: Rows) -> list[tuple[str, ...]]:
    found = []
    pieces = find_pieces(rows, mask_documents=True)
    tokens = rows.tokens.reshape(-1)
    for number, (begin, length) in enumerate(zip(pieces.starts, pieces.lengths, strict=True)):
        ids = tokens[begin : begin + length]
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        edge = rows.members["parts"][number] if "parts" in rows.members else length
        found.append(tuple(tokenizer.decode(ids[a:b]) for a, b in ((0, edge), (edge, length))))
    return found


words = st.lists(
    st.sampled_from(["red", "big", "cat", "house", "42", "Baum", "a", "groß"]),
    min_size=1,
    max_size=9,
).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.tuples(words, words), min_size=1, max_size=5), share=st.floats(0, 1))
def test_swapped_words_are_the_same_ones_each_in_its_own_text(tokenizer, texts, share):
    rows = rows_of(tokenizer, texts)
    after = changed(tokenizer, rows, swap=share)
    assert after.lengths.tolist() == rows.lengths.tolist()
    for before, now in zip(texts, texts_of(tokenizer, after), strict=True):
        for text, other in zip(before, now, strict=True):
            assert Counter(text.split(" ")) == Counter(other.split(" "))
    assert (after.members["parts"] == rows.members["parts"]).all()


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.tuples(words, words), min_size=1, max_size=5), share=st.floats(0, 0.9))
def test_of_a_text_some_words_are_left_in_their_order_and_one_at_least(tokenizer, texts, share):
    rows = rows_of(tokenizer, texts)
    after = changed(tokenizer, rows, delete=share)
    for before, now in zip(texts, texts_of(tokenizer, after), strict=True):
        for text, other in zip(before, now, strict=True):
            left = iter(text.split())
            assert other.split() and all(word in left for word in other.split())
    assert (after.members["labels"] == rows.members["labels"]).all()


def test_nothing_asked_is_nothing_changed(tokenizer):
    rows = rows_of(tokenizer, [("red cat, big house.",), ("42",)])
    after = changed(tokenizer, rows)
    assert texts_of(tokenizer, after) == texts_of(tokenizer, rows)


def test_so_many_words_are_left_out_and_moved_as_was_asked_for(tokenizer):
    text = " ".join(["red", "big", "old", "new"] * (WORDS // 4))
    rows = rows_of(tokenizer, [(text,)] * 200)
    left = [one[0].split() for one in texts_of(tokenizer, changed(tokenizer, rows, delete=0.1))]
    # A binomial of 8,000 words has a standard deviation of 0.0034 about its share.
    assert 1 - sum(map(len, left)) / (200 * WORDS) == pytest.approx(0.1, abs=0.014)
    named = " ".join(f"{n}" for n in range(WORDS))
    rows = rows_of(tokenizer, [(named,)] * 200)
    moved = 0
    for one, _ in texts_of(tokenizer, changed(tokenizer, rows, swap=0.1)):
        moved += sum(word != str(n) for n, word in enumerate(one.split()))
    # Four swaps of two words each, of which some meet.
    assert moved / (200 * WORDS) == pytest.approx(0.19, abs=0.02)


def test_punctuation_stays_and_no_words_grow_together(tokenizer):
    rows = rows_of(tokenizer, [("red, big. cat house",)] * 50)
    after = texts_of(tokenizer, changed(tokenizer, rows, swap=0.5))
    known = {"red", "big", "cat", "house"}
    assert len({one for one, _ in after}) > 3
    for one, _ in after:
        bare = one.replace(",", " ").replace(".", " ").split()
        assert {*bare} == known and one.count(",") == one.count(".") == 1


def test_a_sample_is_another_one_in_another_epoch_and_the_same_when_asked_again(tokenizer):
    texts = [("red big old new small cat house tree",)] * 4
    once, again, later = (
        texts_of(tokenizer, changed(tokenizer, rows_of(tokenizer, texts, first=n), swap=0.4))
        for n in (7, 7, 1007)
    )
    assert once == again != later
    alone = rows_of(tokenizer, texts[:1], first=9)
    assert texts_of(tokenizer, changed(tokenizer, alone, swap=0.4))[0] == once[2]


def test_training_is_augmented_where_that_is_asked_for_and_held_out_texts_never(labelled):
    parts = ENCODERS["matches"]
    plain = run_config(labelled, parts["objective"], source="matches", model=parts["model"])
    asked = parts["objective"] | {"augment": {"delete": 0.5}}
    config = run_config(labelled, asked, source="matches", model=parts["model"])
    assert isinstance(build_preparation(plain), LabelledPreparation)
    preparation = build_preparation(config)
    assert isinstance(preparation, AugmentedPreparation)
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    held_out = plan_evaluation(config, tokenizer, max_windows=None).preparation
    assert isinstance(held_out, LabelledPreparation)
    with open_for(config) as stream:
        rows = stream.read_rows(0, 4)
    before, after = held_out.prepare(rows), preparation.prepare(rows)
    assert before.targets == after.targets
    assert before.arrays["labels"].tolist() == after.arrays["labels"].tolist()
    assert before.arrays["lengths"].sum() > after.arrays["lengths"].sum()
    assert 0 < after.arrays["types"].sum() < before.arrays["types"].sum()


def test_shares_that_are_none_are_told():
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\nobjective: {name: classes, names: [a, b], augment: {delete: 1}}\n"
        )
    assert "objective.augment.delete" in str(caught.value)
