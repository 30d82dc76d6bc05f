"""Two parts of a window, in order or not: what they are made of, and how both terms are scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_rows import (
    IGNORED,
    KINDS,
    MASK,
    VOCAB,
    draw_rows,
    hidden,
    restored,
    with_partners,
)
from theirs import compare_gradients, draw_weights, open_theirs
from tiny_run import tiny_config

from lmscale.config.hf.choose import ARCHITECTURES
from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.objective import OBJECTIVES, MaskedOrderConfig
from lmscale.exchange.rules import find_left_out
from lmscale.model.family import build_model
from lmscale.objective.masked import MaskedPreparation
from lmscale.objective.masked_parts import MaskedPartsPreparation, order_parts, pair_parts
from lmscale.objective.masked_parts_scoring import build_masked_parts_scoring
from lmscale.objective.scores import to_device
from lmscale.stream.batches import Rows, digest_rows

CLS, SEP = VOCAB + 1, VOCAB + 2


def preparation(*, seed: int = 1, **settings) -> MaskedPartsPreparation:
    config = MaskedOrderConfig(name="masked_order", **settings)
    masked = MaskedPreparation(config=config, seed=seed, mask_id=MASK, kinds=KINDS)
    return MaskedPartsPreparation(masked=masked, cls_id=CLS, sep_id=SEP)


def test_every_row_is_its_window_in_two_parts_swapped_or_not():
    rows = draw_rows(200, 61)
    arrays, targets, (ordered,) = preparation().prepare(rows)
    assert arrays["ids"].shape == (200, 64) and ordered == 200
    assert targets == len(arrays["labels"]) == len(arrays["positions"])
    ids, length = restored(arrays, (200, 64)), int(rows.lengths[0])
    for row, text in enumerate(rows.tokens[:, :length].tolist()):
        framed = ids[row, : length + 3].tolist()
        assert framed[0] == CLS and framed[-1] == SEP and framed.count(SEP) == 2
        middle = framed.index(SEP)
        parts = [framed[1:middle], framed[middle + 1 : -1]]
        assert all(parts)
        assert (parts[1] + parts[0] if arrays["order"][row] else parts[0] + parts[1]) == text
        assert arrays["types"][row, : length + 3].tolist() == [0] * (middle + 1) + [1] * (
            length + 2 - middle
        )
    assert (arrays["lengths"] == length + 3).all()
    assert 0.4 < arrays["order"].mean() < 0.6
    special = np.isin(ids, [CLS, SEP])
    assert not (hidden(arrays, ids.shape)[special] != IGNORED).any()


def test_most_parts_end_with_a_sentence():
    rows = draw_rows(300, 125)
    arrays = preparation().prepare(rows).arrays
    ids = restored(arrays, (300, 128))
    kept = arrays["order"] == 0
    ends = [row[row.tolist().index(SEP) - 1] % 25 == 7 for row in ids[kept]]
    # Of 125 tokens one in 25 ends a sentence; within a quarter of the row lie 62 of them.
    assert np.mean(ends) > 0.85


@pytest.mark.parametrize("length", [0, 1])
def test_a_row_without_two_tokens_has_no_order(length):
    tokens = np.full((2, 13), 9, dtype=np.uint16)
    numbers, lengths = np.arange(2), np.array([13, length], dtype=np.int32)
    rows = Rows(
        numbers=numbers, tokens=tokens, lengths=lengths, digests=digest_rows(numbers, tokens),
        starts=np.array([0, 13], dtype=np.int32),
    )  # fmt: skip
    arrays, _, more = preparation().prepare(rows)
    assert arrays["order"][1] == IGNORED and more == (1,)
    assert arrays["lengths"][1] == (length + 3 if length else 0)
    assert (arrays["positions"] < 16 + length + 1).all()


def test_a_sample_is_prepared_alike_whichever_others_come_with_it():
    whole = draw_rows(9, 61, first=10**9)
    prepared = preparation(unit="words").prepare(whole).arrays
    labels = hidden(prepared, (9, 64))
    starts = whole.starts[(whole.starts >= 4 * 61) & (whole.starts < 5 * 61)] - 4 * 61
    alone = Rows(
        numbers=whole.numbers[[4]], tokens=whole.tokens[[4]], lengths=whole.lengths[[4]],
        starts=starts, digests=whole.digests[[4]],
    )  # fmt: skip
    arrays = preparation(unit="words").prepare(alone).arrays
    for name in ("ids", "types", "order", "lengths"):
        assert np.array_equal(arrays[name][0], prepared[name][4])
    assert np.array_equal(hidden(arrays, (1, 64))[0], labels[4])
    other = preparation(unit="words", seed=2).prepare(whole).arrays
    assert not np.array_equal(other["order"], prepared["order"])
    assert not np.array_equal(hidden(other, (9, 64)), labels)


@pytest.mark.parametrize("name", ["masked_order", "masked_next"])
def test_both_terms_and_their_gradients_are_those_of_transformers_bert(name, tmp_path):
    section = EncoderConfig(
        family="encoder", layers=4, width=48, heads=4, ffn_width=96, token_types=2, pooler=True,
        text_classes=2,
    )  # fmt: skip
    sizes = Sizes(vocab_size=VOCAB + 3, max_positions=64, sequence_length=64)
    model = build_model(section, sizes).eval()
    draw_weights(model)
    bert = ARCHITECTURES["bert"]
    assert not find_left_out(bert, model, "order")
    theirs, rules = open_theirs(tmp_path, model, bert, section, sizes, head="order", pad_token_id=1)

    arrange = {"masked_order": order_parts, "masked_next": pair_parts}[name]
    made = replace(preparation(), arrange=arrange)
    arrays = made.prepare(with_partners(draw_rows(10, 61))).arrays
    assert {*arrays["order"]} == {0, 1}
    scoring = build_masked_parts_scoring(model, OBJECTIVES.section(name)(name=name))
    scores = scoring(**to_device(arrays, torch.device("cpu")))
    counts = torch.tensor([scores.loss.targets, *(term.targets for term in scores.more_losses)])
    (scores.terms() / counts).sum().backward()
    output = theirs(
        input_ids=torch.from_numpy(arrays["ids"].astype(np.int64)),
        attention_mask=torch.arange(64) < torch.from_numpy(arrays["lengths"])[:, None],
        token_type_ids=torch.from_numpy(arrays["types"].astype(np.int64)),
        labels=torch.from_numpy(hidden(arrays, (10, 64))),
        next_sentence_label=torch.from_numpy(arrays["order"].astype(np.int64)),
    )
    output.loss.backward()
    assert (scores.terms() / counts).sum().item() == pytest.approx(output.loss.item(), rel=1e-5)
    compare_gradients(model, theirs, rules)


def test_what_it_needs_of_model_and_stream_is_told_together(tiny_data, tmp_path):
    overrides = {"objective": {"name": "masked_order"}, "model": {"family": "encoder"}}
    with pytest.raises(ValueError) as caught:
        tiny_config(tiny_data, tmp_path, overrides)
    for part in ("model.token_types: 2", "model.text_classes: 2", "stream.mask_documents to false"):
        assert part in str(caught.value)
