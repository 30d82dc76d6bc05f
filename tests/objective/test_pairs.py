"""Pairs through the stream: both texts of each, and a loss that others in the row are not in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from labelled_data import records

from lmscale.config import RunConfig, parse_config
from lmscale.config.data import WindowShape, plan_batches
from lmscale.errors import ConfigError, DataError
from lmscale.model.family import build_model
from lmscale.objective.objective import IGNORED, build_preparation, build_scoring
from lmscale.objective.scores import to_device
from lmscale.stream.batches import digest_rows, split_rows
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import Stream, open_stream
from lmscale.stream.whole_documents import (
    Counted,
    LongDocumentsError,
    check_fit,
    count_windows,
)
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import draw_weights, fill_weights

MODELS = {
    "pairs": {"family": "encoder_decoder", "layers": 1, "width": 48, "heads": 4},
    "completion": {"layers": 1, "width": 48, "heads": 4, "kv_heads": 4},
}


def run_config(
    labelled: RunConfig,
    objective: str | Mapping[str, Any],
    *,
    source: str = "pairs",
    model: Mapping[str, Any] | None = None,
    **stream: Any,
) -> RunConfig:
    settings = {
        "sources": {source: {"shards": f"{labelled.shards.folder}/{source}/train"}},
        "sequence_length": 48, "packing": "best_fit", "mixture_block": 64, "workers": 0,
        "cache": {"folder": f"{labelled.shards.folder}/cache"},
    }  # fmt: skip
    tree = {"run": {"name": "a", "seed": 3}, "stream": settings | stream}
    named = {"name": objective} if isinstance(objective, str) else objective
    tree |= {"tokenizer": labelled.tokenizer.model_dump(), "objective": named}
    return RunConfig.model_validate(tree | {"model": model or MODELS[named["name"]]})


def open_for(config: RunConfig) -> Stream:
    return open_stream(config.stream, seed=config.run.seed, shape=config.window)


def scoring_of(config: RunConfig):
    model = build_model(config.model, config.sizes)
    fill_weights(model, draw_weights(1))
    return build_scoring(model, config)


def score(scoring, arrays: Mapping[str, np.ndarray]):
    return scoring(**to_device(arrays, torch.device("cpu")))


def train(config: RunConfig, *, steps: int, windows: int = 4) -> list[float]:
    """The losses of some steps of plain Adam on the stream."""
    scoring, preparation = scoring_of(config), build_preparation(config)
    optimizer = torch.optim.Adam(scoring.parameters(), lr=1e-2)
    losses = []
    with open_for(config) as stream:
        for step in range(steps):
            rows = stream.read_rows(step * windows, windows)
            loss = score(scoring, preparation.prepare(rows).arrays).loss
            optimizer.zero_grad()
            (loss.total / loss.targets).backward()
            optimizer.step()
            losses.append(float(loss.total.detach() / loss.targets))
    return losses


def test_both_texts_of_every_pair_come_in_windows_of_several(labelled):
    config = run_config(labelled, "pairs")
    tokenizer, end = load_tokenizer(labelled.tokenizer.folder), config.added_ids["end"]
    found = []
    with open_for(config) as stream:
        rows = stream.read_rows(0, sum(stream.datasets["pairs"].counts))
    prepared = build_preparation(config).prepare(rows)
    arrays = prepared.arrays
    assert len(rows.starts) > 2 * len(rows.tokens)
    assert prepared.targets == (arrays["labels"] != IGNORED).sum()
    for texts, starts in (("source", "source_starts"), ("labels", "label_starts")):
        parts = np.split(arrays[texts].reshape(-1), arrays[starts][1:])
        ends = [np.flatnonzero(part == end)[0] for part in parts]
        found.append([tokenizer.decode(part[:e]) for part, e in zip(parts, ends, strict=True)])
    known = {(record["en"], record["de"]) for record in records("pairs")}
    assert len(found[0]) == stream.datasets["pairs"].manifest.documents
    assert set(zip(*found, strict=True)) <= known
    assert len(build_preparation(config).target_ids(arrays)) == prepared.targets - len(found[0])


def test_a_pair_is_scored_as_if_it_were_alone_in_its_window(labelled):
    for name in ("pairs", "completion"):
        config = run_config(labelled, name)
        scoring, preparation = scoring_of(config), build_preparation(config)
        with open_for(config) as stream:
            rows = stream.read_rows(5, 1)
        total, count = score(scoring, preparation.prepare(rows).arrays).loss
        alone = torch.zeros(())
        edges = [*rows.starts.tolist(), int(rows.lengths[0])]
        for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
            tokens = np.full_like(rows.tokens, 3)
            tokens[0, : end - begin] = rows.tokens[0, begin:end]
            one = replace(
                rows,
                tokens=tokens,
                starts=np.zeros(1, dtype=np.int32),
                lengths=np.array([end - begin], dtype=np.int32),
                members={"parts": rows.members["parts"][[number]]},
            )
            alone += score(scoring, preparation.prepare(one).arrays).loss.total
        torch.testing.assert_close(total, alone)
        assert int(count) == edges[-1] - rows.members["parts"].sum()


def test_a_row_without_a_document_has_no_targets(labelled):
    for name in ("pairs", "completion"):
        config = run_config(labelled, name)
        with open_for(config) as stream:
            rows = stream.read_rows(0, 2)
        rows.lengths[:] = 0
        prepared = build_preparation(config).prepare(rows)
        scores = score(scoring_of(config), prepared.arrays)
        assert (prepared.targets, int(scores.loss.targets), float(scores.loss.total.detach())) == (
            0,
            0,
            0,
        )


def test_a_sample_is_the_same_in_every_order_of_reading_and_its_digest_covers_the_boundary(
    labelled,
):
    config = run_config(labelled, "pairs")
    with open_for(config) as stream:
        whole = stream.read_rows(0, 12)
        parts = [part for n in (0, 4, 8) for part in split_rows(stream.read_rows(n, 4), 2)]
        later = open_stream(
            config.stream, seed=3, shape=config.window, state=stream.state_at(4)
        ).read_rows(4, 1)
        with open_stream(config.stream, seed=3) as plain:  # which does not read them
            assert plain.read_rows(0, 4).members == {}
    assert np.array_equal(
        np.concatenate([part.members["parts"] for part in parts]), whole.members["parts"]
    )
    assert [d for part in parts for d in part.digests.tolist()] == whole.digests.tolist()
    assert later.digests[0] == whole.digests[4]
    first = whole.members["parts"][: np.searchsorted(whole.starts, whole.tokens.shape[1])]
    digests = [
        digest_rows(whole.numbers[:1], whole.tokens[:1], [{"parts": parts}])[0]
        for parts in (first, first + 1)
    ]
    assert digests[0] == whole.digests[0] != digests[1]


def test_steps_are_the_same_on_any_number_of_ranks_and_workers(labelled):
    config = run_config(labelled, "pairs")

    def digest(ranks: int, workers: int) -> list:
        plan = plan_batches(global_windows=4, micro_windows=2, data_ranks=ranks)
        preparation = build_preparation(config)
        with open_for(config) as stream:
            return digest_steps(
                stream, plan, preparation=preparation, first_step=1, num_steps=2, workers=workers
            )

    assert digest(1, 0) == digest(2, 0) == digest(1, 1)


@pytest.mark.parametrize("name", ["pairs", "completion"])
def test_a_translation_of_real_words_is_learned(labelled, name):
    losses = train(run_config(labelled, name), steps=60)
    assert losses[-1] < 0.5 < 3 < losses[0]


def find_long(number: int) -> Counted:
    """All shards but the first two hold a document that is too long."""
    lengths = np.array([100 if number > 1 else 1])
    check_fit(lengths, WindowShape(stride=10, overlap=0, has_pairs=True), where=str(number))
    return Counted(windows=1)


def test_what_is_no_pair_or_does_not_fit_is_told_before_a_step(labelled, tmp_path):
    with pytest.raises(DataError, match="its documents are no pairs. Name target_field of its"):
        open_for(run_config(labelled, "pairs", source="classes"))
    with pytest.raises(DataError, match=r"\d+ of its \d+ documents are longer than a window of 12"):
        open_for(run_config(labelled, "pairs", sequence_length=12))
    open_stream(run_config(labelled, "pairs", sequence_length=12).stream, seed=1).close()  # cut
    with pytest.raises(LongDocumentsError) as caught:
        count_windows(find_long, 100_000, lambda shards: None)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        *map(str, range(2, 10)),
        "Looking stopped there, after 10 of 100,000 shards",
    ]
    with pytest.raises(LongDocumentsError) as caught:
        count_windows(find_long, 9, lambda shards: None)
    assert len(caught.value.problems) == 7
    with pytest.raises(ConfigError) as caught:
        parse_config("run: {name: a}\nobjective: {name: pairs}\nstream: {mask_documents: false}\n")
    for told in (
        "set stream.packing: best_fit",
        "set stream.mask_documents: true",
        "'pairs' needs model.family: encoder_decoder",
    ):
        assert told in str(caught.value)
