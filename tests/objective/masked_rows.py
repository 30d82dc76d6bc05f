"""Rows to hide tokens of, and what was hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lmscale.objective.token_kinds import TokenKinds
from lmscale.stream.batches import Rows, digest_rows, take_rows

VOCAB, MASK, EOS, IGNORED = 1000, 1000, 2, -100
KINDS = TokenKinds(
    is_special=np.arange(VOCAB) < 4,
    begins_word=np.random.default_rng(1).random(VOCAB) < 0.6,
    ends_sentence=np.arange(VOCAB) % 25 == 7,
)


def draw_rows(count: int, length: int, *, first: int = 0, seed: int = 0) -> Rows:
    """Rows of documents of about 40 tokens that end in eos, the last tenth of each row padding."""
    random = np.random.default_rng(seed)
    tokens = random.integers(4, VOCAB, (count, length)).astype(np.uint16)
    ends = random.random((count, length)) < 1 / 40
    tokens[ends] = EOS
    lengths = np.full(count, length - length // 10, dtype=np.int32)
    tokens[:, lengths[0] :] = 3
    begins = np.zeros((count, length), dtype=bool)
    begins[:, 1:] = ends[:, :-1] & (np.arange(length) < lengths[0])[1:]
    begins[:, 0] = True
    numbers = np.arange(first, first + count)
    starts = np.flatnonzero(begins).astype(np.int32)
    digests = digest_rows(numbers, tokens)
    return Rows(numbers=numbers, tokens=tokens, lengths=lengths, starts=starts, digests=digests)


def with_partners(rows: Rows) -> Rows:
    """An even number of rows from an even one on, each with its neighbour."""
    return replace(rows, partners=take_rows(rows, np.arange(len(rows.numbers)) ^ 1))


def hidden(arrays, shape) -> np.ndarray:
    """Labels in their places, ``IGNORED`` elsewhere."""
    labels = np.full(shape, IGNORED)
    labels.reshape(-1)[arrays["positions"]] = arrays["labels"]
    return labels


def restored(arrays, shape) -> np.ndarray:
    """The ids before any was hidden."""
    labels = hidden(arrays, shape)
    return np.where(labels == IGNORED, arrays["ids"], labels)
