"""Trigram and unigram are what the textbook's formula gives, on the tokens that a run has read."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing

import numpy as np
import pytest

from lmscale.config import RunConfig
from lmscale.config.objective import DistillConfig, FillMiddleConfig
from lmscale.errors import ConfigError
from lmscale.evaluation import baseline
from lmscale.evaluation.baseline import count_run, plan_keys, score_set
from lmscale.evaluation.fitting import BaselineName
from lmscale.evaluation.ngram import (
    BITS,
    BOUNDARY,
    Trigram,
    Unigram,
    answer_keys,
    target_keys,
)
from lmscale.evaluation.perplexity import plan_evaluation
from lmscale.objective.causal import CausalPreparation
from lmscale.objective.objective import IGNORED, build_preparation
from lmscale.shards.build import build_shards
from lmscale.stream.batches import Rows
from lmscale.stream.dataset import open_dataset
from lmscale.stream.ledger import LedgerRow, open_ledger
from lmscale.stream.stream import open_stream
from lmscale.tokenizer.codec import load_tokenizer

VOCAB = 40


def key(*words: int) -> int:
    number = 0
    for word in words:
        number = number << BITS | word
    return number


def draw_keys(count: int) -> np.ndarray:
    """Of words that lean on the two before them."""
    words = [0, 0]
    draw = np.random.default_rng(1)
    for _ in range(count):
        words.append(int((words[-1] + 2 * words[-2] + min(draw.zipf(1.5), 99)) % (VOCAB - 1)))
    return np.array([key(*words[at : at + 3]) for at in range(count)])


def discount(counts) -> float:
    once, twice = (sum(count == n for count in counts) for n in (1, 2))
    return once / (once + 2 * twice) if once else 0.5


def by_the_formula(keys: np.ndarray, u: int, v: int, w: int) -> float:
    """Interpolated Kneser-Ney, order by order, out of dictionaries."""
    mask = 2**BITS - 1
    three = Counter((int(k) >> 2 * BITS, int(k) >> BITS & mask, int(k) & mask) for k in keys)
    two, one = Counter(triple[1:] for triple in three), Counter()
    one.update(pair[1] for pair in two)
    d = discount(one.values())
    p = (max(one[w] - d, 0) + d * len(one) / VOCAB) / sum(one.values())
    for counts, context in ((two, (v,)), (three, (u, v))):
        after: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        for words, count in counts.items():
            after[words[:-1]][words[-1]] = count
        if here := after.get(context):
            d, total = discount(counts.values()), sum(here.values())
            p = max(here.get(w, 0) - d, 0) / total + d * len(here) / total * p
    return p


def test_every_probability_is_the_formula_s_and_they_sum_to_one():
    keys = draw_keys(400)
    trigram = Trigram(keys, vocab_size=VOCAB)
    contexts = [(1, 2), (4, 4), (BOUNDARY, 3), (7, VOCAB - 1)]  # the last: a word never seen
    for u, v in contexts:
        asked = np.array([key(u, v, w) for w in range(VOCAB)])
        p = np.exp(trigram.log_p(asked))
        wanted = [by_the_formula(keys, u, v, w) for w in range(VOCAB)]
        assert p == pytest.approx(wanted, rel=1e-12)
        assert p.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mask_documents", [True, False])
def test_the_targets_are_the_causal_ones_and_no_context_reaches_over_a_document(mask_documents):
    rows = Rows(
        numbers=np.arange(2),
        tokens=np.array([[1, 5, 6, 2, 1, 7, 2], [8, 9, 2, 3, 3, 3, 3]], dtype=np.uint16),
        lengths=np.array([7, 3], dtype=np.int32),
        starts=np.array([0, 4, 7], dtype=np.int32),
        digests=np.zeros(2, dtype=np.uint64),
    )
    keys = target_keys(rows, mask_documents=mask_documents).tolist()
    preparation = CausalPreparation(mask_documents=mask_documents)
    assert len(keys) == preparation.prepare(rows).targets
    across = [] if mask_documents else [key(6, 2, 1)]
    begun = [key(BOUNDARY, 1, 7), key(1, 7, 2)] if mask_documents else [key(2, 1, 7), key(1, 7, 2)]
    assert keys == [
        *(key(BOUNDARY, 1, 5), key(1, 5, 6), key(5, 6, 2)),
        *(*across, *begun),
        *(key(BOUNDARY, 8, 9), key(8, 9, 2)),
    ]


def test_a_unigram_shares_out_what_its_discount_takes():
    ids = np.array([5, 5, 5, 7, 7, 9, 11, 11, 13])  # two came once, two twice: a third is taken
    unigram = Unigram(ids, vocab_size=20)
    p = np.exp(unigram.log_p(np.arange(20)))
    rest = 5 / 3 / 20
    wanted = [{5: 3, 7: 2, 9: 1, 11: 2, 13: 1}.get(number, 1 / 3) - 1 / 3 for number in range(20)]
    assert p == pytest.approx([(count + rest) / 9 for count in wanted], rel=1e-12)
    assert unigram.tokens == 9 and p.sum() == pytest.approx(1, abs=1e-12)


def test_of_an_answer_every_label_is_a_target_behind_those_before_it():
    labels = np.array([[50, 6, 7, IGNORED], [IGNORED] * 4, [51, 8, 9, 52]], dtype=np.int32)
    assert answer_keys(labels).tolist() == [
        *(key(BOUNDARY, BOUNDARY, 50), key(BOUNDARY, 50, 6), key(50, 6, 7)),
        *(key(BOUNDARY, BOUNDARY, 51), key(BOUNDARY, 51, 8), key(51, 8, 9), key(8, 9, 52)),
    ]
    assert answer_keys(labels, np.array([0, 2, 8, 9])).tolist() == [
        *(key(BOUNDARY, BOUNDARY, 50), key(BOUNDARY, 50, 6), key(BOUNDARY, BOUNDARY, 7)),
        *(key(BOUNDARY, BOUNDARY, 51), key(BOUNDARY, BOUNDARY, 8), key(BOUNDARY, 8, 9)),
        key(8, 9, 52),
    ]


ENCODER = {"family": "encoder", "width": 32, "heads": 4}
PAIRS = {"family": "encoder_decoder", "width": 32, "heads": 4}
OTHERS: dict[str, tuple[BaselineName, dict]] = {  # baseline, and sections of a run that it is of
    "masked": ("unigram", {"objective": {"name": "masked"}, "model": ENCODER}),
    "spans": ("ngram", {"objective": {"name": "spans"}, "model": PAIRS}),
}


@pytest.fixture(scope="module")
def shards(config, tokenizer) -> RunConfig:
    build_shards(config, processes=1)
    return config


@pytest.fixture(scope="module")
def read_run(shards, tmp_path_factory):
    return begin_run(shards, tmp_path_factory.mktemp("ngram"), {})


def begin_run(config, folder, sections, source="docs"):
    """A run that has read its source three times, in twenty steps; the source; a step's windows."""
    sources = {source: {"shards": f"{config.shards.folder}/{source}/train"}}
    tree = config.model_dump(mode="json", exclude={"model"} if sections else set()) | sections
    tree["stream"] |= {"sources": sources, "window_shards": 1, "mixture_block": 16}
    tree["stream"]["mask_documents"] = sections.get("model") != PAIRS or source != "docs"
    if source != "docs":
        tree["stream"] |= {"sequence_length": 48, "packing": "best_fit"}
    tree["run"]["folder"] = str(folder / "run")
    config = type(config).model_validate(tree)
    with open_stream(config.stream, seed=config.run.seed, shape=config.window) as stream:
        windows = stream.orders[source].total
        every = windows * 3 // 20
        with open_ledger(config.folder, next_step=0, stream=stream, n=0) as ledger:
            for step in range(20):
                row = {"step": step, "first_n": step * every, "samples": every}
                ledger.append(LedgerRow(**row, tokens=1, digest=0))
        whole = stream.read_rows(0, windows)
    return config, whole, every


def test_what_a_run_has_read_is_counted_once_up_to_the_step_that_is_evaluated(read_run, tokenizer):
    config, whole, every = read_run
    targets = CausalPreparation(mask_documents=True).prepare(whole).targets
    heard = []
    trigram = count_run(
        config, config.folder, "ngram", step=20, tokenizer=tokenizer, advance=heard.append
    )
    assert trigram.tokens == targets and sum(heard) == len(whole.tokens)
    part = count_run(config, config.folder, "ngram", step=2, tokenizer=tokenizer)
    assert 0 < part.tokens < targets / 2
    keys = target_keys(whole, mask_documents=True)
    assert trigram.log_p(keys).mean() > part.log_p(keys).mean()


def test_of_a_long_run_as_much_as_the_limit_is_counted_in_few_stretches_of_what_was_new(
    read_run, tokenizer, monkeypatch
):
    config, whole, _ = read_run
    length, windows = config.stream.sequence_length, len(whole.tokens)
    limit = windows // 2 * length
    monkeypatch.setattr(baseline, "MAX_TOKENS", limit)
    heard = []
    trigram = count_run(
        config, config.folder, "ngram", step=20, tokenizer=tokenizer, advance=heard.append
    )
    assert 0.8 * limit < trigram.tokens <= limit  # document beginnings are no targets
    assert sum(heard) == windows // 2 and len(heard) == baseline.STRETCHES


@pytest.mark.parametrize("objective", OTHERS)
def test_other_objectives_are_counted_and_scored_at_their_own_targets(
    shards, tokenizer, tmp_path, objective
):
    name, sections = OTHERS[objective]
    config, whole, _ = begin_run(shards, tmp_path, sections)
    counts = count_run(config, config.folder, name, step=20, tokenizer=tokenizer)
    plan = plan_evaluation(config, tokenizer, max_windows=None)
    with closing(
        open_dataset(config.evaluation.sets["docs"], config.stream, shape=config.window)
    ) as dataset:
        keys_of = plan_keys(config, plan.preparation)
        loss = score_set(counts, dataset, plan, keys_of)
        asked = plan.preparation.prepare(dataset.read(range(dataset.num_windows)))
    if objective == "spans":  # sentinels are targets, too
        assert counts.tokens == build_preparation(config).prepare(whole).targets
        assert loss == -counts.log_p(answer_keys(asked.arrays["labels"])).mean()
        return
    text = whole.tokens[np.arange(whole.tokens.shape[1]) < whole.lengths[:, None]]
    text = text[tokenizer.token_bytes()[text] > 0]
    share = Counter(text.tolist())
    assert counts.tokens == len(text)
    wanted = -np.log([share[number] / len(text) or 1e-5 for number in asked.arrays["labels"]])
    assert loss == pytest.approx(wanted.mean(), rel=0.01)  # but for the discount


def keys_of_documents(rows: Rows, known: np.ndarray, *, end: int | None) -> list[int]:
    """Of what stands behind the first tokens of each document, ``known`` [documents]; with ``end``
    that is an answer without them, and this is its last word.
    """
    width, keys = rows.tokens.shape[1], []
    stops = [*rows.starts[1:].tolist(), rows.tokens.size]
    for start, stop, first in zip(rows.starts.tolist(), stops, known.tolist(), strict=True):
        row_end = start // width * width + int(rows.lengths[start // width])
        ids = rows.tokens.reshape(-1)[start : min(stop, row_end)].tolist()
        words = [BOUNDARY, *ids]
        if end is not None:
            words, first = [BOUNDARY, BOUNDARY, *ids[first:-1], end], 1
        keys += [key(*words[at - 1 : at + 2]) for at in range(first, len(words) - 1)]
    return keys


@pytest.mark.parametrize("name", ["prefix", "pairs", "completion"])
def test_what_is_behind_a_first_text_is_counted_document_by_document(labelled, tmp_path, name):
    sections = {"objective": {"name": name}} | ({"model": PAIRS} if name == "pairs" else {})
    config, whole, _ = begin_run(labelled, tmp_path, sections, source="pairs")
    tokenizer = load_tokenizer(config.tokenizer.folder)
    counts = count_run(config, config.folder, "ngram", step=20, tokenizer=tokenizer)
    plan = plan_evaluation(config, tokenizer, max_windows=None)
    prepared = build_preparation(config).prepare(whole)
    known = prepared.arrays["prefixes"] if name == "prefix" else whole.members["parts"]
    end = config.added_ids["end"] if name == "pairs" else None
    wanted = keys_of_documents(whole, known, end=end)
    assert plan_keys(config, build_preparation(config))(whole).tolist() == wanted
    assert counts.tokens == prepared.targets == len(wanted)
    folder = f"{config.shards.folder}/pairs/heldout"
    with closing(open_dataset(folder, config.stream, shape=config.window)) as dataset:
        loss = score_set(counts, dataset, plan, plan_keys(config, plan.preparation))
    assert 0 < loss < np.log(config.num_ids) / 2


def test_a_distillation_s_targets_are_those_of_its_tokens_alone(read_run):
    config, whole, _ = read_run
    keys, others = (
        plan_keys(run, build_preparation(run))(whole).tolist()
        for run in (
            config,
            config.model_copy(update={"objective": DistillConfig(name="distill", teacher="x")}),
        )
    )
    assert keys == others


def test_a_baseline_that_cannot_be_counted_says_why(read_run, tokenizer):
    config, _, _ = read_run

    def refused(
        words: str, name: BaselineName = "ngram", *, step=10, run=config, pieces=tokenizer
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            count_run(run, config.folder, name, step=step, tokenizer=pieces)

    other = config.model_copy(update={"objective": FillMiddleConfig()})
    refused(
        "the objectives causal, distill, prefix, spans, denoisers, infill, pairs, completion, "
        "dialogue; this",
        run=other,
    )
    refused(
        "unigram is only for the objectives masked, masked_order, masked_next; this ru", "unigram"
    )
    refused("has read nothing yet", step=0)
    wide = config.tokenizer.model_copy(update={"vocab_size": 3_000_000})
    large = config.model_copy(update={"tokenizer": wide})
    refused("at most 2,097,150 pieces; here there are 3,000,000", run=large)
