"""Which spans are left out: T5's lengths, every token once, nothing but a sample's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import tiny_config

from lmscale.config import RunConfig, parse_config
from lmscale.config.denoiser import DenoiserConfig, pair_lengths, plan_raw_tokens
from lmscale.config.objective import DenoisersConfig, SpansConfig
from lmscale.errors import ConfigError
from lmscale.model.family import CrossModel, build_model
from lmscale.objective.objective import IGNORED, build_preparation, build_scoring
from lmscale.objective.scores import to_device
from lmscale.objective.spans import draw_lengths
from lmscale.stream.batches import Rows, digest_rows
from lmscale.train.initial import draw_weights, fill_weights

VOCAB = 32_000
IDS = "and the 102 ids (start, end, sentinel_0 … sentinel_99) that the objective adds"


def settings(objective: dict, *, length: int = 512, **sections) -> RunConfig:
    model = {"family": "encoder_decoder", "layers": 1, "width": 16, "heads": 2}
    stream = {"sequence_length": length, "mask_documents": False}
    tree = {"run": {"name": "a"}, "stream": stream, "model": model, "objective": objective}
    return RunConfig.model_validate(tree | sections)


def draw_rows(count: int, length: int, *, first: int = 0) -> Rows:
    """Full rows of one document each, a function of their numbers."""
    numbers = np.arange(first, first + count)
    tokens = np.random.default_rng(first).integers(4, VOCAB, (count, length)).astype(np.uint16)
    return Rows(
        numbers=numbers,
        tokens=tokens,
        lengths=np.full(count, length, dtype=np.int32),
        starts=(np.arange(count) * length).astype(np.int32),
        digests=digest_rows(numbers, tokens),
    )


def pick(rows: Rows, chosen: list[int]) -> Rows:
    width = rows.tokens.shape[1]
    return Rows(
        numbers=rows.numbers[chosen],
        tokens=rows.tokens[chosen],
        lengths=rows.lengths[chosen],
        starts=(np.arange(len(chosen)) * width).astype(np.int32),
        digests=rows.digests[chosen],
    )


def pairs_of(arrays) -> list[tuple[list[int], list[int]]]:
    """What is read and what is written of every row, without padding."""
    read = zip(arrays["source"].tolist(), arrays["source_lengths"].tolist(), strict=True)
    return [
        (source[:length], [label for label in labels if label != IGNORED])
        for (source, length), labels in zip(read, arrays["labels"].tolist(), strict=True)
    ]


def put_together(read: list[int], written: list[int], ids: dict[str, int]) -> list[int]:
    """The text that a pair was made of."""
    assert read[-1] == written[-1] == ids["end"]
    first = ids["sentinel_0"]
    spans: list[list[int]] = []
    for token in written[:-1]:
        if token >= first:
            assert token == first + len(spans), "sentinels come in order"
            spans.append([])
        else:
            spans[-1].append(token)
    head = 1 if read[0] in (ids.get("mode_R"), ids.get("mode_S"), ids.get("mode_X")) else 0
    whole = [spans[t - first] if t >= first else [t] for t in read[head:-1]]
    return [token for part in whole for token in part]


def test_568_tokens_become_512_and_114():
    config = settings({"name": "spans"})
    assert (config.window.tokens, config.window.overlap) == (568, 0)
    assert config.sizes.pair_lengths == (512, 114)
    arrays, targets, *_ = build_preparation(config).prepare(draw_rows(3, 568))
    assert arrays["source_lengths"].tolist() == [512] * 3 and targets == 3 * 114


@pytest.mark.parametrize("length", [16, 100, 512, 1024, 4096])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.8])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 64.0, 1e9])
def test_no_longer_text_fits(length, rate, mean_span):
    mixture = (DenoiserConfig(rate=rate, mean_span=mean_span, mode="X"),)
    tokens = plan_raw_tokens(mixture, length)
    assert max(pair_lengths(mixture, tokens)) <= length
    assert min(max(pair_lengths(mixture, tokens + more)) for more in range(1, 9)) > length


@pytest.mark.parametrize("name", ["spans", "denoisers"])
@pytest.mark.parametrize("length", [2, 3, 7, 50, 568])
def test_what_is_read_and_written_make_the_text(name, length):
    config = settings({"name": name})
    rows = draw_rows(20, config.window.tokens)
    rows.lengths[:] = length = min(length, config.window.tokens)
    arrays, targets, *_ = build_preparation(config).prepare(rows)
    pairs = pairs_of(arrays)
    for row, (read, written) in enumerate(pairs):
        text = put_together(read, written, config.added_ids)
        assert text == rows.tokens[row, :length].tolist()
    assert targets == sum(len(written) for _, written in pairs)
    ids = build_preparation(config).target_ids(arrays)
    assert (ids < VOCAB).all() and len(ids) < targets


def test_a_text_of_less_than_two_tokens_has_no_targets():
    config = settings({"name": "spans"})
    rows = draw_rows(3, 568)
    rows.lengths[:] = [0, 1, 568]
    arrays, targets, *_ = build_preparation(config).prepare(rows)
    assert targets == 114
    assert arrays["source_lengths"].tolist() == [0, 0, 512]
    assert (arrays["labels"][:2] == IGNORED).all()


def test_spans_are_those_of_t5():
    """Its ``_random_segmentation`` shuffles the marks of first items among all but the first."""
    config = settings({"name": "spans"})
    rows = draw_rows(2000, 568)
    arrays, *_ = build_preparation(config).prepare(rows)
    spans = np.diff(np.argwhere(arrays["labels"] >= config.added_ids["sentinel_0"])[:, 1])
    spans = spans[spans > 0] - 1  # of a row's last span nothing is counted
    random = np.random.default_rng(1)
    noise, count = 85, 28
    marks = np.zeros((2000, noise - 1), dtype=bool)
    marks[:, : count - 1] = True
    marks = np.hstack([np.ones((2000, 1), bool), random.permuted(marks, axis=1)])
    theirs = np.diff(np.argwhere(marks)[:, 1])
    theirs = theirs[theirs > 0]
    assert len(spans) == len(theirs) == 2000 * 27
    ours, expected = (np.bincount(x, minlength=12)[1:12] / len(x) for x in (spans, theirs))
    # Of 54,000 spans: five standard deviations of the difference of two shares of a third.
    assert np.abs(ours - expected).max() < 5 * (2 * 0.33 * 0.67 / 54_000) ** 0.5


def test_every_division_of_a_text_is_as_likely():
    words = np.random.default_rng(0).integers(0, 2**63, (60_000, 6)).astype(np.uint64)
    divisions, counts = np.unique(draw_lengths(words, 3), axis=0, return_counts=True)
    assert len(divisions) == 10 and (divisions.sum(1) == 6).all()  # 5 over 2
    assert np.abs(counts - 6000).max() < 5 * 6000**0.5


@pytest.mark.parametrize("name", ["spans", "denoisers"])
def test_a_sample_is_prepared_alike_whichever_others_come_with_it(name):
    config = settings({"name": name}, length=128)
    whole = draw_rows(24, config.window.tokens, first=10**9)
    whole.lengths[5] = 40
    prepare = build_preparation(config).prepare
    expected = prepare(whole).arrays
    for chosen in ([3], [5, 23], [23, 5, 4]):
        arrays = prepare(pick(whole, chosen)).arrays
        for field, array in arrays.items():
            assert np.array_equal(array, expected[field][chosen]), field
    other = settings({"name": name}, length=128, run={"name": "a", "seed": 2})
    assert not np.array_equal(
        build_preparation(other).prepare(whole).arrays["source"], expected["source"]
    )


def test_a_mixture_draws_its_denoisers_by_their_weights():
    config = settings({"name": "denoisers"}, length=128)
    rows = draw_rows(7000, config.window.tokens)
    arrays, *_ = build_preparation(config).prepare(rows)
    assert isinstance(config.objective, DenoisersConfig)
    # 2 regular ones, 1 sequential, 4 extreme ones, of the same weight.
    shares = np.bincount(arrays["modes"], minlength=3) / 7000
    assert np.abs(shares - np.array([2, 1, 4]) / 7).max() < 5 * (0.25 / 7000) ** 0.5
    ids = config.added_ids
    heads = [ids[f"mode_{mode}"] for mode in "RSX"]
    assert arrays["source"][:, 0].tolist() == [heads[mode] for mode in arrays["modes"]]
    for row in np.flatnonzero(arrays["modes"] == 1)[:20]:
        ((read, written),) = pairs_of({name: array[[row]] for name, array in arrays.items()})
        assert read[-2:] == [ids["sentinel_0"], ids["end"]]  # all that is left out is its end
        assert len(written) - 2 == round(0.25 * config.window.tokens)


def test_the_loss_is_plain_cross_entropy_and_the_modes_divide_it():
    tokenizer = {"vocab_size": 300}
    config = settings({"name": "denoisers", "chunk_tokens": 100}, length=64, tokenizer=tokenizer)
    model = build_model(config.model, config.sizes)
    assert isinstance(model, CrossModel)
    fill_weights(model, draw_weights(1))
    scoring = build_scoring(model, config)
    rows = draw_rows(30, config.window.tokens)
    rows.tokens[:] %= 300
    rows.lengths[::3] = 20
    arrays, targets, *_ = build_preparation(config).prepare(rows)
    tensors = to_device(arrays, torch.device("cpu"))
    scores = scoring(**tensors)
    labels = tensors["labels"].long()
    before = torch.cat([torch.full((30, 1), config.added_ids["start"]), labels[:, :-1]], 1)
    nothing = torch.zeros_like(tensors["source"], dtype=torch.bool)
    read = model.lay_out(nothing, mask_documents=False, lengths_B=tensors["source_lengths"])
    layout = model.lay_out_target(
        torch.zeros_like(labels, dtype=torch.bool), tensors["source"], read
    )
    logits = model.head(model(before.clamp(min=0), layout)).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(scores.loss.total, expected)
    assert int(scores.loss.targets) == targets
    modes = [scores.figures[f"loss_{mode}"] for mode in "RSX"]
    torch.testing.assert_close(sum(mode.total for mode in modes), scores.figures["loss"].total)
    assert sum(int(mode.targets) for mode in modes) == targets
    hits = (logits.argmax(-1) == labels.flatten()).sum()
    assert int(scores.figures["accuracy"].total) == int(hits)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        (
            "stream: {sequence_length: 512, mask_documents: true}",
            "Set stream.mask_documents: false",
        ),
        (
            "objective: {name: spans, sentinels: 20}",
            "windows of 568 tokens have up to 28",
        ),
        ("model: {family: decoder}", "'spans' needs model.family: encoder_decoder"),
        ("model: {family: encoder_decoder, max_positions: 400}", "of which 512 tokens are made"),
        ("model: {family: encoder_decoder, vocab_size: 32064}", IDS),
        (
            "stream: {sequence_length: 2, mask_documents: false}",
            "too short for the objective spans: give at least 3",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_a_rank_starts(yaml, words):
    sections = {
        "stream": "stream: {sequence_length: 512, mask_documents: false}",
        "objective": "objective: {name: spans}",
        "model": "model: {family: encoder_decoder}",
    }
    name = yaml.partition(":")[0]
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(["run: {name: a}", *(sections | {name: yaml}).values()]))
    assert words in str(caught.value)


def test_a_best_checkpoint_by_the_loss_of_a_mode_that_no_denoiser_has_is_refused():
    def best_by(figure: str) -> RunConfig:
        return settings(
            {"name": "denoisers", "denoisers": {"regular": {"mode": "R"}, "plain": {}}},
            evaluation={"sets": {"web": "somewhere"}, "every_steps": 10},
            checkpoint={"every_steps": 10, "keep_best": {"metric": f"evaluation/web/{figure}"}},
        )

    assert best_by("loss_R").objective.held_out == ("accuracy", "loss_R")
    with pytest.raises(ValueError, match="loss_X' is never measured"):
        best_by("loss_X")


def test_t5_s_numbers_are_the_defaults(tiny_data, tmp_path):
    assert SpansConfig(name="spans").mixture == (DenoiserConfig(rate=0.15, mean_span=3.0),)
    with pytest.raises(
        ValueError, match="needs model.family: decoder or recurrent; here it is encoder_d"
    ):
        tiny_config(tiny_data, tmp_path, {"model": {"family": "encoder_decoder"}})


def test_sentinels_of_the_tokenizers_own_may_go_downwards_and_no_id_is_added():
    """As T5's, whose first one has the highest id."""
    ids = {"start": 0, "end": 1, **{f"sentinel_{n}": VOCAB - 1 - n for n in range(100)}}
    usual = settings({"name": "spans"})
    own = settings({"name": "spans"}, tokenizer={"vocab_size": VOCAB, "ids": ids})
    assert own.num_ids == VOCAB and own.objective_ids == ids and not own.added_ids
    rows = draw_rows(2, usual.window.tokens)
    first, second = (build_preparation(each).prepare(rows).arrays for each in (usual, own))
    added = usual.added_ids
    renamed = {added[name]: number for name, number in ids.items()}
    for name in ("source", "labels"):
        expected = [[renamed.get(each, each) for each in row] for row in first[name].tolist()]
        assert second[name].tolist() == expected
    some = settings({"name": "spans"}, tokenizer={"ids": {"sentinel_0": 5, "sentinel_1": 9}})
    read = build_preparation(some).prepare(rows).arrays["source"][0].tolist()
    assert [n for n in read if n in (5, 9) or n >= VOCAB + 2][:3] == [5, 9, VOCAB + 2]
