"""What a model has to be better than: the loss that counting alone reaches on a run's own tokens,
over the very targets of its held-out sets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import (
    CausalConfig,
    DenoisedConfig,
    DistillConfig,
    PrefixConfig,
)
from lmscale.config.supervised import CompletionConfig, DialogueConfig, PairsConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.fitting import BaselineName, check_baseline
from lmscale.evaluation.ngram import Trigram, Unigram, answer_keys, target_keys
from lmscale.evaluation.perplexity import EvaluationPlan
from lmscale.objective.objective import build_preparation
from lmscale.objective.prefix import find_targets
from lmscale.stream.audit import open_recorded
from lmscale.stream.batches import Preparation, Rows, reads_partners
from lmscale.stream.dataset import Dataset
from lmscale.stream.ledger import load_record, read_ledger
from lmscale.stream.stream import Stream
from lmscale.tokenizer.base import Tokenizer

MAX_TOKENS = 2**25  # that are counted: of a longer run an even part; 1.2 GB as trigrams
STRETCHES = 8  # that part is read in; few, as every stretch opens shards of its own
TOKENS_AT_ONCE = 2**18

Keys = Callable[[Rows], np.ndarray]
"""Rows → what the counts know each of their targets by, int64 [targets]."""


def count_run(
    config: RunConfig,
    run_folder: Path,
    name: BaselineName,
    *,
    step: int,
    tokenizer: Tokenizer,
    advance: Callable[[float], None] = lambda windows: None,
) -> Trigram | Unigram:
    """The counts of all tokens that a run had read after ``step`` steps, each counted once.

    A trigram is of the run's targets, a unigram of all tokens that may be hidden. Of more than
    ``MAX_TOKENS`` it counts so many, in stretches that lie evenly over what was new to the run.
    ``advance`` hears of windows. Raises ``ConfigError`` where the objective is not one of
    ``fitting.OBJECTIVES_OF``, ``DataError`` where the shards are not there any more.
    """
    check_baseline(config, name)
    rows = [row for row in read_ledger(run_folder) if row.step < step]
    samples = max((row.first_n + row.samples for row in rows), default=0)
    if not samples:
        raise ConfigError(f"--baseline {name}: {run_folder} has read nothing yet. Leave it out.")
    state, locations = load_record(run_folder)
    with open_recorded(config, state, locations, look="") as stream:
        config = config.model_copy(update={"stream": stream.config})
        of_targets = plan_keys(config, build_preparation(config))
        keys_of = _text_of(tokenizer) if name == "unigram" else of_targets
        keys = np.concatenate(list(_read_keys(stream, samples, keys_of, advance)))
    if not len(keys):
        raise ConfigError(
            f"--baseline {name}: what {run_folder} has read holds no target. Leave it out."
        )
    if name == "unigram":
        return Unigram(keys, vocab_size=tokenizer.vocab_size)
    # An objective's own ids lie above the tokenizer's.
    return Trigram(keys, vocab_size=config.num_ids if config.added_ids else tokenizer.vocab_size)


def plan_keys(config: RunConfig, preparation: Preparation) -> Keys:
    """How the targets of rows are found that ``preparation`` makes the objective's arrays of."""
    mask_documents = config.stream.mask_documents

    def keys_of(rows: Rows) -> np.ndarray:
        if isinstance(config.objective, CausalConfig | DistillConfig):
            return target_keys(rows, mask_documents=mask_documents)
        arrays = preparation.prepare(rows).arrays
        if isinstance(config.objective, PrefixConfig | CompletionConfig):
            return target_keys(rows, mask_documents=mask_documents, among=find_targets(arrays))
        if isinstance(config.objective, DialogueConfig):
            return target_keys(rows, mask_documents=True, among=arrays["chosen"] == 1)
        if isinstance(config.objective, DenoisedConfig | PairsConfig):
            return answer_keys(arrays["labels"], arrays.get("label_starts"))
        return preparation.target_ids(arrays).astype(np.int64)

    return keys_of


def _text_of(tokenizer: Tokenizer) -> Keys:
    """All tokens of rows that stand for text: the others are never hidden."""
    is_text = tokenizer.is_text()

    def keys_of(rows: Rows) -> np.ndarray:
        ids = rows.tokens[np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]]
        return ids[is_text[ids]].astype(np.int64)

    return keys_of


def _read_keys(
    stream: Stream, samples: int, keys_of: Keys, advance: Callable[[float], None]
) -> Iterator[np.ndarray]:
    """The keys of the first ``samples`` samples, without a source's second and later epochs."""
    totals = np.array([stream.orders[name].total for name in stream.mixture.names])
    at_once = max(1, TOKENS_AT_ONCE // stream.shape.tokens)
    for begin, end in _plan_stretches(stream, samples):
        for first in range(begin, end, at_once):
            count = min(at_once, end - first)
            sources, indices = stream.mixture.locate(first, count)
            is_new = indices < totals[sources]
            if is_new.any():
                rows = stream.read_rows(first, count)
                rows = replace(rows, lengths=np.where(is_new, rows.lengths, 0))
                yield keys_of(rows)
            advance(count)


def _plan_stretches(stream: Stream, samples: int) -> Iterator[tuple[int, int]]:
    """First sample and end of each stretch; all hold equally many new samples, up to one."""

    def count_new(n: int) -> int:
        """How many of the first ``n`` samples are new, those that were jumped over included."""
        counts = stream.mixture.counts_at(n)
        return sum(min(counts.get(name, 0), each.total) for name, each in stream.orders.items())

    total = count_new(samples)
    taken = min(total, max(1, MAX_TOKENS // stream.config.sequence_length))
    for part in range(STRETCHES):
        first = part * total // STRETCHES
        size = (part + 1) * taken // STRETCHES - part * taken // STRETCHES
        if size:
            begin, end = (
                bisect_left(range(samples), count, key=count_new) for count in (first, first + size)
            )
            yield begin, end


def score_set(
    counts: Trigram | Unigram,
    dataset: Dataset,
    plan: EvaluationPlan,
    keys_of: Keys,
    between_batches: Callable[[], None] = lambda: None,
) -> float:
    """Nats per target of the windows that the plan scores, by the counts."""
    nll, targets = 0.0, 0
    numbers = plan.window_numbers(dataset)
    at_once = max(1, TOKENS_AT_ONCE // dataset.shape.tokens)
    partners = reads_partners(plan.preparation)
    for first in range(0, len(numbers), at_once):
        between_batches()
        keys = keys_of(dataset.read(numbers[first : first + at_once], partners=partners))
        nll -= float(counts.log_p(keys).sum())
        targets += len(keys)
    return nll / targets
