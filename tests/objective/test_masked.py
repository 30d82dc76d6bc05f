"""Which tokens are hidden: the paper's shares, nothing but a sample's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
from masked_rows import IGNORED, KINDS, MASK, VOCAB, draw_rows, hidden
from theirs import import_transformers
from tiny_run import tiny_config

from lmscale.config.objective import MaskedConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.masked import MaskedPreparation
from lmscale.objective.masking import count_words, shuffle_trigrams
from lmscale.objective.token_kinds import token_kinds
from lmscale.stream.batches import Rows
from lmscale.stream.order import philox_key
from lmscale.tokenizer.codec import load_tokenizer


def preparation(*, seed: int = 1, **settings) -> MaskedPreparation:
    config = MaskedConfig(name="masked", **settings)
    return MaskedPreparation(config=config, seed=seed, mask_id=MASK, kinds=KINDS)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw_rows(400, 512)


@pytest.mark.parametrize("unit", ["tokens", "words", "spans"])
def test_the_shares_are_those_of_the_paper(rows, unit):
    arrays, targets, _ = preparation(unit=unit).prepare(rows)
    labels = hidden(arrays, rows.tokens.shape)
    chosen = labels != IGNORED
    assert chosen.sum() == targets == len(arrays["labels"])
    assert np.array_equal(labels[chosen], rows.tokens[chosen])
    assert np.array_equal(arrays["ids"][~chosen], rows.tokens[~chosen])
    may = (np.arange(512) < rows.lengths[:, None]) & (rows.tokens >= 4)
    assert not (chosen & ~may).any()
    # Of 180,000 tokens; spans and words come in fewer, larger pieces, and a document's end cuts
    # spans short.
    assert chosen.sum() / may.sum() == pytest.approx(0.15, abs=0.005 if unit == "tokens" else 0.01)
    is_mask, is_kept = arrays["ids"] == MASK, arrays["ids"] == rows.tokens
    assert is_mask[chosen].mean() == pytest.approx(0.8, abs=0.012)
    assert is_kept[chosen].mean() == pytest.approx(0.1, abs=0.012)
    random = arrays["ids"][chosen & ~is_mask & ~is_kept]
    assert len(random) / targets == pytest.approx(0.1, abs=0.012)
    assert random.min() < 30 and random.max() > VOCAB - 30 and np.median(random) > 400


WHOLE_WORDS = {"whole_word_mask": True, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({}, {}), ({"unit": "words", "replace": 0.0, "keep": 0.0}, WHOLE_WORDS)],
    ids=["tokens", "words"],
)
def test_the_shares_are_those_of_transformers_collator(rows, ours, theirs):
    transformers = import_transformers()
    from tokenizers import Tokenizer, models

    pieces = {f"p{number}": number for number in range(VOCAB)} | {"[MASK]": MASK}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(pieces, unk_token="p0")),
        mask_token="[MASK]", eos_token="p2", pad_token="p3", unk_token="p0", bos_token="p1",
    )  # fmt: skip
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer, seed=1, return_tensors="np", **theirs
    )
    full = rows.tokens[:, : rows.lengths[0]].astype(np.int64)
    places = 2 * np.arange(full.shape[1])  # a token goes on with a word that ends where it begins
    begins = np.where(KINDS.begins_word[full], places, places - 1)
    offsets = np.stack(np.broadcast_arrays(begins, places + 1), axis=2)
    samples = zip(full, offsets, strict=True)
    made = collator([{"input_ids": ids, "offset_mapping": its} for ids, its in samples])
    arrays, *_ = preparation(**ours).prepare(rows)
    labels = hidden(arrays, rows.tokens.shape)[:, : full.shape[1]]
    ids = arrays["ids"][:, : full.shape[1]]
    for mine, others in (
        (labels != IGNORED, made["labels"] != IGNORED),
        (ids == MASK, made["input_ids"] == MASK),
        (ids != full, made["input_ids"] != full),
    ):
        # Of 184,000 tokens each, words of 1.7 tokens on average and up to a dozen: four standard
        # deviations of the difference of two such shares.
        pieces = 184_000 / (3 if ours else 1)
        assert mine.mean() == pytest.approx(others.mean(), abs=4 * (2 * 0.15 / pieces) ** 0.5)


def test_every_piece_of_a_word_shares_its_fate_of_being_chosen(rows):
    arrays, *_ = preparation(unit="words").prepare(rows)
    chosen = hidden(arrays, rows.tokens.shape) != IGNORED
    goes_on = ~KINDS.begins_word[rows.tokens] & (rows.tokens >= 4)
    goes_on.reshape(-1)[rows.starts] = False
    goes_on &= np.roll(rows.tokens, 1, axis=1) >= 4
    goes_on &= np.arange(512) < rows.lengths[:, None]
    assert goes_on.any()
    assert np.array_equal(chosen[goes_on], np.roll(chosen, 1, axis=1)[goes_on])


def test_spans_have_the_lengths_of_spanbert_and_one_fate(rows):
    arrays, *_ = preparation(unit="spans", rate=0.02).prepare(rows)  # so that few of them meet
    chosen = hidden(arrays, rows.tokens.shape) != IGNORED
    begins = np.zeros(rows.tokens.shape, dtype=bool)
    begins.reshape(-1)[rows.starts] = True
    first = chosen & (begins | ~np.roll(chosen, 1, axis=1))
    lengths = np.diff(np.flatnonzero(np.append(first[chosen], True)))
    # 3.8 in the paper; a document's end cuts some, and some meet.
    assert lengths.mean() == pytest.approx(3.8, abs=0.2)
    number = np.cumsum(first[chosen])
    is_mask = (arrays["ids"] == MASK)[chosen]
    shares = np.bincount(number, weights=is_mask)[1:] / np.bincount(number)[1:]
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert shares.mean() == pytest.approx(0.8, abs=0.05)


def test_shuffled_groups_of_three_are_to_be_put_in_order(rows):
    config = MaskedConfig(name="masked", shuffle=0.05)
    words = draw_words(philox_key("a test"), rows.numbers, count_words(512, config))
    may = (np.arange(512) < rows.lengths[:, None]) & (rows.tokens >= 4)
    shuffled, is_moved = shuffle_trigrams(rows.tokens, may, words, config)
    before, after, moved, free = (
        array[:, :510].reshape(-1, 3) for array in (rows.tokens, shuffled, is_moved, may)
    )
    chosen = moved.any(axis=1)
    assert np.array_equal(chosen, moved.all(axis=1)) and free[chosen].all()
    assert chosen.sum() / free.all(axis=1).sum() == pytest.approx(0.05, abs=0.004)
    assert np.array_equal(before[~chosen], after[~chosen])
    assert np.array_equal(np.sort(before[chosen]), np.sort(after[chosen]))
    assert (before != after)[chosen].any(axis=1).mean() > 0.99  # but where a token comes twice
    _, counts = np.unique(after[chosen].argsort(axis=1), axis=0, return_counts=True)
    assert len(counts) == 6  # every order that is not the first one makes all six of drawn ids
    # Beside the masked tokens, which stay as they are, all of a moved group are targets.
    arrays, targets, _ = preparation(shuffle=0.05).prepare(rows)
    labels = hidden(arrays, rows.tokens.shape)
    assert np.array_equal(labels[labels != IGNORED], rows.tokens[labels != IGNORED])
    share = targets / may.sum()
    assert share == pytest.approx(0.15 + 0.05 * 0.85 * free.all(axis=1).mean() * 0.85**2, abs=0.01)


@pytest.mark.parametrize("unit", ["tokens", "words", "spans"])
def test_a_sample_is_prepared_alike_whichever_others_come_with_it(unit):
    far = 10**9
    whole = draw_rows(16, 64, first=far)
    prepared = preparation(unit=unit).prepare(whole).arrays
    labels = hidden(prepared, whole.tokens.shape)
    for row in (0, 7, 15):
        starts = whole.starts[(whole.starts >= row * 64) & (whole.starts < row * 64 + 64)]
        alone = Rows(
            numbers=whole.numbers[[row]],
            tokens=whole.tokens[[row]],
            lengths=whole.lengths[[row]],
            starts=starts - row * 64,
            digests=whole.digests[[row]],
        )
        arrays = preparation(unit=unit).prepare(alone).arrays
        assert np.array_equal(arrays["ids"][0], prepared["ids"][row])
        assert np.array_equal(hidden(arrays, (1, 64))[0], labels[row])


def test_another_sample_number_and_another_seed_hide_other_tokens(rows):
    first = preparation().prepare(rows).arrays["positions"]
    again = preparation().prepare(draw_rows(400, 512, first=400)).arrays["positions"]
    assert not np.array_equal(first, again)
    assert not np.array_equal(first, preparation(seed=2).prepare(rows).arrays["positions"])


MASKED = {"objective": {"name": "masked"}, "model": {"family": "encoder", "width": 32, "heads": 4}}


def test_words_begin_with_spaces_punctuation_and_ideographs(tiny_data):
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    kinds = token_kinds(tokenizer)
    assert kinds.is_special[:4].all() and kinds.is_special.sum() == 4
    for text, begins in ((" the", True), ("ing", False), (".", True), ("\n", True)):
        number = tokenizer.encode(f"a{text}")[1] if not text.startswith(" ") else None
        number = tokenizer.encode(text)[0] if number is None else number
        assert kinds.begins_word[number] == begins, text
    byte = {value: tokenizer.encode("\u4e2d")[place] for place, value in enumerate("中".encode())}
    assert [bool(kinds.begins_word[number]) for number in byte.values()] == [True, False, False]


def test_shares_of_more_than_all_chosen_tokens_are_refused():
    with pytest.raises(ValueError, match="together they must be at most 1"):
        MaskedConfig(name="masked", replace=0.6, keep=0.5)


def test_a_decoder_cannot_learn_to_fill_in(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="needs model.family: encoder"):
        tiny_config(tiny_data, tmp_path, {"objective": {"name": "masked"}})


def test_a_pooler_that_nothing_would_train_is_refused(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="would never train the pooler: leave model.pooler out"):
        tiny_config(tiny_data, tmp_path, MASKED | {"model": MASKED["model"] | {"pooler": True}})
