"""Two parts of a row: of one window or of two, whoever reads them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from masked_rows import IGNORED, KINDS, MASK, VOCAB, draw_rows, hidden, restored, with_partners
from tiny_run import tiny_config

from lmscale.config.data import WindowShape
from lmscale.config.objective import MaskedNextConfig
from lmscale.objective.masked import MaskedPreparation
from lmscale.objective.masked_parts import MaskedPartsPreparation, pair_parts
from lmscale.objective.objective import build_preparation
from lmscale.stream.audit import check_row
from lmscale.stream.batches import take_rows
from lmscale.stream.dataset import open_dataset
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import open_stream

CLS, SEP = VOCAB + 1, VOCAB + 2
SHAPE = (1200, 64)


def preparation(*, previous: bool) -> MaskedPartsPreparation:
    config = MaskedNextConfig(name="masked_next", previous=previous)
    return MaskedPartsPreparation(
        masked=MaskedPreparation(config=config, seed=1, mask_id=MASK, kinds=KINDS),
        cls_id=CLS, sep_id=SEP, arrange=partial(pair_parts, previous=previous),
        reads_partners=True,
    )  # fmt: skip


def parts_of(arrays, shape) -> list[list[list[int]]]:
    parts = []
    for row, length in zip(restored(arrays, shape).tolist(), arrays["lengths"], strict=True):
        framed = row[:length]
        middle = framed.index(SEP)
        assert framed[0] == CLS and framed[-1] == SEP and framed.count(SEP) == 2
        parts.append([framed[1:middle], framed[middle + 1 : -1]])
    return parts


@pytest.mark.parametrize(("previous", "shares"), [(False, (1 / 2, 1 / 2)), (True, (1 / 3,) * 3)])
def test_a_second_part_follows_comes_before_or_is_the_partner_s(previous, shares):
    rows = with_partners(draw_rows(SHAPE[0], SHAPE[1] - 3))
    arrays, targets, (judged,) = preparation(previous=previous).prepare(rows)
    parts, labels = parts_of(arrays, SHAPE), arrays["order"]
    assert judged == SHAPE[0] and targets == len(arrays["positions"])
    text = [row[:length] for row, length in zip(rows.tokens.tolist(), rows.lengths, strict=True)]
    ends = 0
    for row, (one, other) in enumerate(parts[:200]):
        if labels[row] == 1 and previous:
            one, other = other, one
        whose = row ^ 1 if labels[row] == 1 + previous else row
        assert one == text[row][: len(one)]
        begins = [at for at in range(len(text[whose])) if text[whose][at:][: len(other)] == other]
        assert begins and (whose != row or begins == [len(one)])
        ends += KINDS.ends_sentence[text[whose][begins[0] - 1]]
    assert ends > 100
    # Of 600 pairs; three standard deviations of a share of a third are 0.06.
    for label, share in enumerate(shares):
        assert np.mean(labels == label) == pytest.approx(share, abs=0.06)
    is_other = labels.reshape(-1, 2) == 1 + previous
    assert (is_other[:, 0] == is_other[:, 1]).all()  # both exchange, or both keep


def test_no_length_tells_whose_a_second_part_is():
    arrays = preparation(previous=False).prepare(with_partners(draw_rows(400, 61))).arrays
    seconds = [len(other) for _, other in parts_of(arrays, (400, 64))]
    assert seconds[::2] == seconds[1::2]


def test_a_pair_is_prepared_alike_whichever_others_come_with_it():
    prepare = preparation(previous=True).prepare
    whole = with_partners(draw_rows(10, 61, first=10**9))
    arrays = prepare(whole).arrays
    labels = hidden(arrays, (10, 64))
    for row in (4, 7):
        place = np.array([row])
        alone = replace(take_rows(whole, place), partners=take_rows(whole, place ^ 1))
        made = prepare(alone).arrays
        for name in ("ids", "types", "order", "lengths"):
            assert np.array_equal(made[name][0], arrays[name][row])
        assert np.array_equal(hidden(made, (1, 64))[0], labels[row])


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A configuration whose ranks have odd shares, and its stream."""
    config = tiny_config(
        tiny_data, tmp_path_factory.mktemp("next"),
        {
            "objective": {"name": "masked_next", "previous": True},
            "stream.mask_documents": False,
            "model": {"family": "encoder", "token_types": 2, "pooler": True, "text_classes": 3},
        },
    )  # fmt: skip
    with open_stream(config.stream, seed=1, shape=config.window) as stream:
        yield config, build_preparation(config), stream


def test_the_audit_counts_the_targets_of_the_same_pairs(run):
    config, prepares, stream = run
    (row,) = digest_steps(
        stream, config.batch.plan(4), preparation=prepares, first_step=3, num_steps=1, workers=0
    )
    assert check_row(stream, row, prepares) is None
    assert row.more_tokens == (row.samples,) and row.to_json()["more_tokens"] == row.more_tokens
    assert check_row(stream, replace(row, more_tokens=()), prepares) is None  # of an older run
    for change in ({"tokens": row.tokens + 1}, {"more_tokens": (row.samples - 1,)}):
        wrong = check_row(stream, replace(row, **change), prepares)
        assert wrong is not None and "the shards give" in wrong


@pytest.mark.parametrize("is_odd", [False, True])
def test_a_held_out_window_s_partner_is_half_a_set_away(run, tiny_data, is_odd):
    config, prepares, _ = run
    shapes = [WindowShape(stride=stride, overlap=0) for stride in range(20, 30)]
    folder = tiny_data / "shards/a/train"
    opened = (open_dataset(folder, config.stream, shape=shape) for shape in shapes)
    dataset = next(each for each in opened if each.num_windows % 2 == is_odd)
    total = dataset.num_windows
    rows = dataset.read(range(total), partners=True)
    half, partners = total // 2, rows.partners
    assert partners is not None
    assert partners.numbers[: 2 * half].tolist() == [*range(half, 2 * half), *range(half)]
    assert (partners.lengths[2 * half :] == 0).all()
    order = prepares.prepare(rows).arrays["order"]
    assert (order[2 * half :] == IGNORED).all()
    is_other = order[: 2 * half] == 2
    assert (is_other[:half] == is_other[half:]).all()


def test_what_it_needs_is_told_together(tiny_data, tmp_path):
    wanted = {
        "objective": {"name": "masked_next", "previous": True}, "batch.warmup": [[2, 7]],
        "model": {"family": "encoder", "token_types": 2, "pooler": True, "text_classes": 2},
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        tiny_config(tiny_data, tmp_path, wanted)
    for part in (
        "a step takes 7 windows", "tells 3 kinds of pairs apart: model.text_classes: 3",
        "set stream.mask_documents to false",
    ):  # fmt: skip
        assert part in str(caught.value)
