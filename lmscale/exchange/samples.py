"""Token ids that two models are compared on: documents that a run holds out, one a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lmscale.config import RunConfig
from lmscale.errors import LmscaleError
from lmscale.evaluation.perplexity import spread_evenly
from lmscale.stream.batches import Rows
from lmscale.stream.dataset import open_dataset

NUM_SAMPLES = 8
MOST_TOKENS = 256  # of all samples but the first
MOST_LOGITS = 2**26  # of one sample, so that they take a quarter of a GB
FEWEST_TOKENS = 2


class Question(NamedTuple):
    """What both models are asked with one sample."""

    ids: tuple[int, ...]
    """That they read."""
    types: tuple[int, ...] | None
    """Of each token, where the model is told of types."""
    written: tuple[int, ...] | None
    """What an encoder-decoder is taken to have written so far."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    rows: tuple[tuple[int, ...], ...]
    """Ids; the first row is the longest."""
    origin: str
    """Where they are from, for people."""
    start: int | None = None
    """Of an encoder-decoder: the id before what it writes, which is the second half of a row."""
    has_types: bool = False
    """Whether the second half of a row is of the second type."""

    def questions(self) -> Iterator[Question]:
        for row in self.rows:
            half = max(1, len(row) // 2)
            types = (0,) * half + (1,) * (len(row) - half) if self.has_types else None
            if self.start is None:
                yield Question(row, types, None)
            else:
                yield Question(row[:half], None, (self.start, *row[half:]))

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    def without(self, unwanted: int | None) -> Samples:
        """The same but for one id, such as padding, by which RoBERTa counts positions."""
        rows = (tuple(each for each in row if each != unwanted) for row in self.rows)
        return replace(self, rows=tuple(row for row in rows if row))

    def of_pieces(self, num_pieces: int) -> list[list[int]]:
        """The rows without ids that are no pieces of a tokenizer."""
        return [[each for each in row if each < num_pieces] for row in self.rows]


def draw_samples(config: RunConfig, fingerprint: str) -> Samples:
    """Of the run's held-out sets; without any that can be read here, of its training shards; else
    random ids. ``fingerprint``: of the tokenizer that they must be made with.

    The first sample is as long as the model can see, and as ``MOST_LOGITS`` lets it be.
    """
    longest = longest_sample(config)
    sources = {name: each.shards for name, each in config.stream.sources.items()}
    kinds = {"held-out": config.evaluation.sets, "training": sources}
    found = random_samples(config.num_ids, longest)
    for kind, name, place in [(k, *item) for k, places in kinds.items() for item in places.items()]:
        documents = _read_documents(config, place, fingerprint)
        if documents:
            found = Samples(rows=_cut(documents, longest), origin=f"{kind} set {name}")
            break
    has_types = getattr(config.model, "token_types", 0) > 1
    return replace(found, start=config.objective_ids.get("start"), has_types=has_types)


def longest_sample(config: RunConfig) -> int:
    return min(config.max_positions, max(MOST_TOKENS, MOST_LOGITS // config.vocab_size))


def random_samples(num_ids: int, longest: int, seed: int = 0) -> Samples:
    """Rows of ids that mean nothing, for a model without data."""
    generator = np.random.default_rng(seed)
    lengths = [longest, *[min(longest, MOST_TOKENS)] * (NUM_SAMPLES - 1)]
    rows = (tuple(generator.integers(0, num_ids, length).tolist()) for length in lengths)
    return Samples(rows=tuple(rows), origin="random ids")


def _read_documents(config: RunConfig, place: str, fingerprint: str) -> list[list[int]]:
    """Of some windows spread over a dataset the longest document of each; none where there is no
    such dataset here, or it is of another tokenizer.
    """
    try:
        dataset = open_dataset(place, config.stream, shape=config.window)
        if dataset.manifest.tokenizer_fingerprint != fingerprint:
            return []
        with closing(dataset):
            numbers = spread_evenly(dataset.num_windows, NUM_SAMPLES)
            return [document for number in numbers for document in _longest(dataset.read([number]))]
    except LmscaleError:
        return []


def _longest(rows: Rows) -> Iterator[list[int]]:
    tokens = rows.tokens.reshape(-1)[: int(rows.lengths[0])]
    documents = np.split(tokens, rows.starts[1:])
    longest = max(documents, key=len)
    if len(longest) >= FEWEST_TOKENS:
        yield longest.tolist()


def _cut(documents: list[list[int]], longest: int) -> tuple[tuple[int, ...], ...]:
    """The first one is all of them, one behind the other, as often as it takes."""
    joined = [token for document in documents for token in document]
    first = (joined * (longest // len(joined) + 1))[:longest]
    return (tuple(first), *(tuple(each[: min(MOST_TOKENS, longest)]) for each in documents[1:]))
