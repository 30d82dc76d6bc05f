"""Which sentences move and what lies behind masks: BART's shares, a sample's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_run import tiny_config

from lmscale.config.objective import InfillConfig
from lmscale.objective.infill import (
    InfillPreparation,
    draw_spans,
    permute_sentences,
    poisson_shares,
    put_masks,
)
from lmscale.objective.objective import IGNORED, build_preparation
from lmscale.objective.pairs import PairIds
from lmscale.stream.batches import Rows, digest_rows
from lmscale.tokenizer.codec import load_tokenizer

VOCAB, START, END, MASK = 1000, 1000, 1001, 1002
BOS, EOS = 1, 2
ENDS = np.arange(VOCAB) % 20 == 0


def draw_rows(count: int, length: int, *, first: int = 0) -> Rows:
    numbers = np.arange(first, first + count)
    tokens = np.random.default_rng(first).integers(4, VOCAB, (count, length)).astype(np.uint16)
    return Rows(
        numbers=numbers,
        tokens=tokens,
        lengths=np.full(count, length, dtype=np.int32),
        starts=(np.arange(count) * length).astype(np.int32),
        digests=digest_rows(numbers, tokens),
    )


def preparation(width: int, *, seed: int = 1, **switches) -> InfillPreparation:
    return InfillPreparation(
        config=InfillConfig(name="infill", **switches),
        seed=seed,
        lengths=(width + 1, width + 1),
        ids=PairIds(start=START, end=END, own=(START, END, MASK)),
        mask=MASK,
        ends_sentence=ENDS,
        eos_id=EOS,
    )


def words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def test_the_text_is_predicted_as_it_was():
    rows = draw_rows(4, 50)
    rows.lengths[:] = [50, 0, 1, 20]
    prepare = preparation(50)
    arrays, targets = prepare.prepare(rows)[:2]
    for labels, tokens, length in zip(arrays["labels"], rows.tokens, rows.lengths, strict=True):
        expected = [*tokens[:length], END] if length else []
        assert labels[labels != IGNORED].tolist() == expected
    assert targets == 51 + 0 + 2 + 21
    assert arrays["source_lengths"][1] == 0
    assert len(prepare.target_ids(arrays)) == 71


def test_the_shares_are_those_of_the_paper():
    rows = draw_rows(400, 512)
    arrays = preparation(512, permute_sentences=False).prepare(rows).arrays
    is_mask = arrays["source"] == MASK
    stay = arrays["source_lengths"] - is_mask.sum(1) - 1
    assert (512 - stay == math.ceil(0.3 * 512)).all()
    # 154 tokens in spans of 3 on average; the last one is cut, so there are a few more than 51.
    assert is_mask.sum() / 400 == pytest.approx(154 / 3 + 0.5, abs=0.7)
    # Evenly over the text: no quarter of it has more than the others.
    where = np.argwhere(is_mask)
    place = where[:, 1] / arrays["source_lengths"][where[:, 0]]
    shares = np.histogram(place, bins=4, range=(0, 1))[0] / len(place)
    assert np.abs(shares - 0.25).max() < 0.015


def test_spans_have_poisson_s_lengths():
    shares = poisson_shares(3.0)
    spans = np.concatenate(
        [draw_spans(512, 0.3, shares, words(512, seed))[:-1] for seed in range(400)]
    )
    counts = np.bincount(spans, minlength=9)[:9] / len(spans)
    expected = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(9)])
    # Of 20,000 spans: five standard deviations of a share of 0.22; that a text ends with the span
    # that is cut favours long ones there, by less.
    assert np.abs(counts - expected).max() < 5 * (0.22 * 0.78 / 20_000) ** 0.5


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
@pytest.mark.parametrize("mean", [1.0, 3.0, 30.0])
def test_masks_never_make_a_text_longer_nor_meet(rate, length, mean):
    shares, text = poisson_shares(mean), np.arange(length)
    for seed in range(40):
        spans = draw_spans(length, rate, shares, words(length, seed))
        read = put_masks(text, spans, words(length + 1, seed + 1), mask=-1)
        assert spans.sum() == math.ceil(length * rate)
        assert 1 <= len(read) <= length and (read == -1).sum() == len(spans)
        assert not ((read[1:] == -1) & (read[:-1] == -1)).any()
        kept = read[read != -1]
        assert (np.diff(kept) > 0).all() and len(kept) == length - spans.sum()
        # Behind a mask lies its span, in order.
        edges = np.concatenate([[-1], read, [length]])
        (at,) = np.nonzero(edges == -1)
        hidden = [edges[place + 1] - edges[place - 1] - 1 for place in at[1:]]
        assert hidden == spans.tolist()


def test_sentences_are_whole_and_every_order_is_as_likely():
    text = np.array([5, 20, 7, 8, 40, 9])  # 20 and 40 end a sentence
    orders = [
        tuple(permute_sentences(text, ENDS, words(6, seed), eos_id=EOS)) for seed in range(6000)
    ]
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(text))}
    found, counts = np.unique(np.array(orders), axis=0, return_counts=True)
    assert len(found) == 6 and np.abs(counts - 1000).max() < 5 * 1000**0.5
    assert [9, 5, 20, 7, 8, 40] in found.tolist()


def test_bos_and_eos_stay_with_the_sentences_of_their_document():
    sentences = [[BOS, 5, 20], [6, 40, EOS], [BOS, 7, EOS], [BOS, 8, 60], [9]]
    text = np.array(sum(sentences, []))
    orders = [permute_sentences(text, ENDS, words(14, seed), eos_id=EOS) for seed in range(50)]
    places = [[order.tolist().index(part[-2:][0]) for part in sentences] for order in orders]
    for order, at in zip(orders, places, strict=True):
        ranked = [sentences[number] for number in np.argsort(at)]
        assert order.tolist() == sum(ranked, [])
    assert len({tuple(np.argsort(at)) for at in places}) > 20


def test_a_sample_is_prepared_alike_whichever_others_come_with_it():
    whole = draw_rows(20, 64, first=10**9)
    whole.lengths[3] = 10
    expected = preparation(64).prepare(whole).arrays
    for first, last in ((0, 20), (3, 4), (2, 11)):
        part = Rows(
            numbers=whole.numbers[first:last],
            tokens=whole.tokens[first:last],
            lengths=whole.lengths[first:last],
            starts=(np.arange(last - first) * 64).astype(np.int32),
            digests=whole.digests[first:last],
        )
        for name, array in preparation(64).prepare(part).arrays.items():
            assert np.array_equal(array, expected[name][first:last]), name
    other = preparation(64, seed=2).prepare(whole).arrays
    assert not np.array_equal(other["source"], expected["source"])


def test_marks_of_the_tokenizer_s_own_texts_end_sentences(tiny_data, tmp_path):
    overrides = {"objective": {"name": "infill"}, "stream.mask_documents": False}
    overrides["model"] = {"family": "encoder_decoder", "width": 32, "heads": 4}
    prepare = build_preparation(tiny_config(tiny_data, tmp_path, overrides))
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    assert isinstance(prepare, InfillPreparation)
    ends = prepare.ends_sentence
    assert ends[tokenizer.encode("a.")[-1]] and prepare.eos_id == tokenizer.eos_id
    assert not ends[tokenizer.encode("the")[-1]]
