"""The optional arrays of a block, beside its tokens and documents: what is said of these.

Their names stand in the tar in the order of the alphabet, as webdataset's writer has them, so that
where each one lies follows from where the tokens and the documents lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmscale.config.labels import LabelSet
from lmscale.files.arrays import NPY_HEADER_BYTES

HEADER_BYTES = 512  # a tar member's header; payloads are padded to a multiple of it
NO_TAG = -1  # of a token that does not begin a word
PARTS, LABELS, TAGS, REPLIES = "parts", "labels", "tags", "replies"
SPANS = ("span_first", "span_last")
OF_TOKENS = {TAGS, REPLIES}  # the others are of documents


class Member(NamedTuple):
    """``<block>.<name>.npy``, with a value for each document of the block, or for each token."""

    name: str
    dtype: np.dtype
    is_of_tokens: bool = False
    padding: int = 0  # of a member of tokens, where a window has none

    def count(self, num_tokens: int, num_documents: int) -> int:
        return num_tokens if self.is_of_tokens else num_documents


def plan_members(
    *, has_pairs: bool, labels: LabelSet | None, has_turns: bool = False
) -> tuple[Member, ...]:
    """Those of a dataset's blocks, or those that an objective reads, in the order of the tar.

    ``parts``: int32, tokens of a document before the second part of the pair, bos included.
    ``labels``: int32, the document's class, or float32, its number. ``tags``: int16, the class of
    the word that the token begins, or ``NO_TAG``. ``span_first``, ``span_last``: int32, tokens of
    the document before the first token of its answer and before the last one; 0: it has none.
    ``replies``: uint8, 1 for the tokens of what the assistant says in a dialogue, those that end
    its turns included, else 0.
    """
    members = []
    if has_turns:
        members.append(Member(REPLIES, np.dtype("u1"), is_of_tokens=True))
    if labels is not None and labels.kind == "spans":
        members += [Member(name, np.dtype("<i4")) for name in SPANS]
    elif labels is not None and labels.kind == "tags":
        members.append(Member(TAGS, np.dtype("<i2"), is_of_tokens=True, padding=NO_TAG))
    elif labels is not None:
        members.append(Member(LABELS, np.dtype("<i4" if labels.kind == "classes" else "<f4")))
    if has_pairs:
        members.append(Member(PARTS, np.dtype("<i4")))
    return tuple(sorted(members))


def padded(size: int) -> int:
    """Bytes that a payload takes in a tar. Of an array of sizes, too."""
    return -(-size // HEADER_BYTES) * HEADER_BYTES


def locate_members(
    members: Sequence[Member], index: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Where in the tar each member's values begin, by the index of its blocks, int64 [blocks, 4];
    where the header of each ``meta.json`` begins, and the most at which its payload ends.

    As written: docs, labels, meta (of unknown size), parts, replies, spans, tags, tokens.
    """
    tokens_at, num_tokens, docs_at, num_documents = index.T
    before = HEADER_BYTES + NPY_HEADER_BYTES  # a member's values
    end = docs_at - NPY_HEADER_BYTES + padded(NPY_HEADER_BYTES + (num_documents + 1) * 8)
    begin = tokens_at - before
    sizes = {
        name: HEADER_BYTES
        + padded(NPY_HEADER_BYTES + (num_tokens if of_tokens else num_documents) * dtype.itemsize)
        for name, dtype, of_tokens, _ in members
    }
    places = {}
    for name, size in sizes.items():
        if name < "meta":
            places[name], end = end + before, end + size
    for name, size in reversed(sizes.items()):
        if name > "meta":
            begin = begin - size
            places[name] = begin + before
    return places, end, begin


def find_wrong_values(
    values: Mapping[str, np.ndarray], docs: np.ndarray, labels: LabelSet | None
) -> Iterator[str]:
    """What no document of a block can have. ``docs``: int64 [documents + 1], as in the tar."""
    if (parts := values.get(PARTS)) is not None:
        odd = np.flatnonzero((parts < 1) | (parts >= np.diff(docs) - 1))
        if len(odd):
            yield f"the second part of document {odd[0]} begins at {parts[odd[0]]}, outside of it"
    if (replies := values.get(REPLIES)) is not None:
        if replies.max(initial=0) > 1:
            yield f"replies has {replies.max()}, which is neither 0 nor 1"
        if odd := np.flatnonzero(np.add.reduceat(replies, docs[:-1], dtype=np.int64) == 0).tolist():
            yield f"document {odd[0]} is a dialogue without an answer"
    if labels is None:
        return
    if labels.kind == "spans":
        yield from _find_wrong_spans(values, docs)
        return
    named = values[TAGS if labels.kind == "tags" else LABELS]
    if labels.kind == "numbers":
        if not np.isfinite(named).all():
            yield "a label is no finite number"
        return
    least = NO_TAG if labels.kind == "tags" else 0
    odd = named[(named < least) | (named >= len(labels.names))]
    if len(odd):
        yield f"{labels.kind} has {odd[0]}, but there are {len(labels.names):,} names"


def _find_wrong_spans(values: Mapping[str, np.ndarray], docs: np.ndarray) -> Iterator[str]:
    """An answer stands in the second part, before eos."""
    first, last = (values[name] for name in SPANS)
    is_none = (first == 0) & (last == 0)
    is_inside = (values[PARTS] <= first) & (first <= last) & (last < np.diff(docs) - 1)
    odd = np.flatnonzero(~(is_none | is_inside))
    if len(odd):
        yield (
            f"the answer of document {odd[0]} is in its tokens {first[odd[0]]} to {last[odd[0]]}, "
            "outside of its second part"
        )
