"""Prefix modelling and fill-in-the-middle: what is seen, what is moved, what is a target."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmscale.config import parse_config
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import FillMiddleConfig, PrefixConfig
from lmscale.errors import ConfigError
from lmscale.model.family import build_model
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.objective.fill_middle import FillMiddlePreparation
from lmscale.objective.prefix import PrefixPreparation
from lmscale.objective.scores import to_device
from lmscale.stream.batches import Rows
from lmscale.train.initial import draw_weights, fill_weights

VOCAB, WIDTH = 60, 33
BOS, EOS, MARKS = 1, 2, (50, 51, 52)


def draw_rows(numbers, *, width: int = WIDTH, mean_length: int = 12) -> Rows:
    """Rows of documents with bos and eos; each is a function of its number."""
    tokens, starts, lengths = [], [], []
    for place, number in enumerate(numbers):
        draw = np.random.default_rng(int(number))
        row: list[int] = []
        while len(row) < width:
            starts.append(place * width + len(row))
            text = draw.integers(4, 50, draw.integers(0, 2 * mean_length)).tolist()
            row += [BOS, *text, EOS]
        tokens.append(row[:width])
        lengths.append(width)
    return Rows(
        numbers=np.array(numbers, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.uint16),
        lengths=np.array(lengths, dtype=np.int32),
        starts=np.array(starts, dtype=np.int32),
        digests=np.zeros(len(tokens), dtype=np.uint64),
    )


def fill_middle(seed: int = 1, **settings) -> FillMiddlePreparation:
    config = FillMiddleConfig(**settings)
    ids = {"marks": MARKS, "bos_id": BOS, "eos_id": EOS}
    return FillMiddlePreparation(config=config, seed=seed, mask_documents=True, **ids)


PREPARATIONS = [
    PrefixPreparation(seed=1, mask_documents=True),
    PrefixPreparation(seed=1, mask_documents=False),
    fill_middle(rate=0.7),
]


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("first", [0, 10**9])
def test_a_sample_is_prepared_alike_however_the_step_is_divided(preparation, first):
    numbers = list(range(first, first + 12))
    whole = preparation.prepare(draw_rows(numbers))
    in_worker = pickle.loads(pickle.dumps(preparation))
    parts = [in_worker.prepare(draw_rows(numbers[at : at + 3])) for at in range(0, 12, 3)]
    assert whole.targets == sum(part.targets for part in parts)
    for name in {"tokens", "prefixes"} & whole.arrays.keys():
        joined = np.concatenate([part.arrays[name] for part in parts])
        assert np.array_equal(whole.arrays[name], joined)
    other = type(preparation)(**{**vars(preparation), "seed": 2}).prepare(draw_rows(numbers))
    assert any(not np.array_equal(whole.arrays[n], other.arrays[n]) for n in whole.arrays)


@pytest.mark.parametrize("masked", [True, False])
def test_only_what_follows_a_prefix_is_scored_and_a_prefix_is_seen_as_a_whole(masked):
    preparation = PrefixPreparation(seed=1, mask_documents=masked)
    prepared = preparation.prepare(draw_rows([5, 6]))
    config = DecoderConfig(layers=2, width=16, heads=2, init_std=0.3)
    model = build_model(config, Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=32))
    fill_weights(model, draw_weights(1))
    scoring = build_causal_scoring(model, PrefixConfig(), mask_documents=masked)
    loss = scoring(**to_device(prepared.arrays, torch.device("cpu"))).figures["loss"]
    assert loss.targets == prepared.targets == len(preparation.target_ids(prepared.arrays)) > 0
    # Each document alone, with a mask written out pair by pair.
    tokens = torch.from_numpy(prepared.arrays["tokens"].astype(np.int64)).flatten()
    starts, prefixes = (prepared.arrays[name].tolist() for name in ("starts", "prefixes"))
    total = 0.0
    for start, end, prefix in zip(starts, [*starts[1:], len(tokens)], prefixes, strict=True):
        document = tokens[start:end]
        if len(document) == 1:
            continue
        length = len(document) - 1
        begins_BT = torch.zeros(1, length, dtype=torch.bool)
        layout = model.lay_out(begins_BT, mask_documents=True)
        layout.mask[0, 0, :, :prefix] = True
        logits = model.head(model(document[None, :-1], layout))[0]
        total += F.cross_entropy(logits[prefix - 1 :], document[prefix:], reduction="sum").item()
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_every_length_of_a_prefix_that_leaves_a_target_is_alike_likely():
    rows = draw_rows(range(4000), width=9, mean_length=50)
    prepared = PrefixPreparation(seed=3, mask_documents=False).prepare(rows)
    counts = np.bincount(prepared.arrays["prefixes"], minlength=9)
    assert counts[0] == 0 and len(counts) == 9
    assert abs(counts[1:] - 500).max() < 5 * 500**0.5  # of a binomial: five deviations


@pytest.mark.parametrize("suffix_first", [0, 1])
def test_a_moved_middle_can_be_put_back(suffix_first):
    rows = draw_rows(range(300))
    prepared = fill_middle(rate=1, suffix_first=suffix_first).prepare(rows)
    before, after = rows.tokens.reshape(-1), prepared.arrays["tokens"].reshape(-1)
    assert prepared.targets == before.size - len(rows.starts)
    ends = [*rows.starts[1:], before.size]
    num_moved = 0
    for start, end in zip(rows.starts, ends, strict=True):
        original, moved = before[start:end].tolist(), after[start:end].tolist()
        if end - start < 8:
            assert moved == original
            continue
        num_moved += 1
        kept_bos, kept_eos = original[:1], original[-1:] if original[-1] == EOS else []
        assert moved[:1] == kept_bos
        places = [moved.index(mark) for mark in MARKS]
        assert places[0] == 1 and sorted(places) == places
        prefix, suffix = moved[2 : places[1]], moved[places[1] + 1 : places[2]]
        rest = moved[places[2] + 1 : len(moved) - len(kept_eos)]
        text = rest + suffix if suffix_first else prefix + rest + suffix
        assert not (suffix_first and prefix)
        assert text == original[1 : len(original) - len(kept_eos) - 3]
        assert moved[len(moved) - len(kept_eos) :] == kept_eos
    assert num_moved > 300


def test_as_many_documents_are_moved_as_asked_and_all_words_are_still_text():
    rows = draw_rows(range(2000), mean_length=40)
    preparation = fill_middle(rate=0.3)
    prepared = preparation.prepare(rows)
    lengths = np.diff([*rows.starts, rows.tokens.size])
    moved = (prepared.arrays["tokens"] == MARKS[0]).sum()
    share = moved / (lengths >= 8).sum()
    assert share == pytest.approx(0.3, abs=5 * (0.21 / (lengths >= 8).sum()) ** 0.5)
    ids = preparation.target_ids(prepared.arrays)
    assert len(ids) == prepared.targets - 3 * moved and ids.max() < min(MARKS)
    # Half of them say their suffix first, and so nothing behind the first mark, as may the others.
    halved, never = (
        fill_middle(rate=0.3, **settings).prepare(rows).arrays["tokens"].reshape(-1)
        for settings in ({}, {"suffix_first": 0})
    )
    empty, by_chance = (
        (a[np.flatnonzero(a == MARKS[0]) + 1] == MARKS[1]).mean() for a in (halved, never)
    )
    assert empty == pytest.approx(0.5 + by_chance / 2, abs=5 * (0.25 / moved) ** 0.5)


def test_a_prefix_and_segments_are_refused_together_and_so_is_a_family_without_prefixes():
    for model, words in (
        ("{segments: 2}", "model.segments = 2 cuts the window"),
        ("{family: recurrent}", "needs model.family: decoder; here it is recurrent, which has"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config(f"run: {{name: a}}\nmodel: {model}\nobjective: {{name: prefix}}")


def test_the_marks_lie_above_the_tokenizer_s_ids():
    config = parse_config("run: {name: a}\nobjective: {name: fill_middle}")
    first = config.tokenizer.vocab_size
    assert config.added_ids == {"prefix": first, "suffix": first + 1, "middle": first + 2}
    assert config.vocab_size >= first + 3
