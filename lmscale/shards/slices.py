"""A split's documents, laid end to end and cut into slices: what each holds, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.corpus.documents import AGAIN, DocumentFile
from lmscale.files.meter import count
from lmscale.files.reading import open_plain, reading
from lmscale.files.strangers import parse_json
from lmscale.shards.dialogues import tokenize_dialogues
from lmscale.shards.manifest import Manifest
from lmscale.shards.members import LABELS, NO_TAG, PARTS, SPANS, TAGS, Member
from lmscale.shards.writer import TokenizedDocument
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.spans import find_tokens

FILL = 0.92  # of max_bytes that a slice is expected to need, so that it seldom takes a second shard
PROBES = 8  # places where the tokens per byte are measured
PROBE_BYTES = 32 * 2**10


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Documents whose line begins in [start, end) of the split's files laid end to end."""

    number: int
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def plan_slices(total_bytes: int, *, expected_bytes: float, max_bytes: int) -> tuple[Slice, ...]:
    """Cut [0, total_bytes) evenly into as many slices as there should be shards."""
    count = max(1, -(-int(expected_bytes) // int(FILL * max_bytes)))
    edges = [total_bytes * number // count for number in range(count + 1)]
    return tuple(
        Slice(number=number, start=edges[number], end=edges[number + 1]) for number in range(count)
    )


def expect_bytes(
    folder: Path, files: Sequence[DocumentFile], tokenizer: Tokenizer, members: Sequence[Member]
) -> float:
    """About how many bytes of tokens, and of what is stored for each of them, the files will make,
    from a few places in them.
    """
    total = sum(file.bytes for file in files)
    read = tokens = 0
    for probe in range(PROBES):
        start = total * probe // PROBES
        for offset, document in read_slice(folder, files, start, total):
            if offset >= start + min(PROBE_BYTES, -(-total // PROBES)):
                break
            text = document["text"]
            read += len(text.encode())
            tokens += len(tokenizer.encode(text)) + 1  # eos; a bos more is no matter
    # The lines hold more than the text: keys, ids, escapes. It makes the shards a little smaller.
    each = sum(member.dtype.itemsize for member in members if member.is_of_tokens)
    return total * tokens / max(read, 1) * (tokenizer.dtype.itemsize + each)


def read_slice(
    folder: Path, files: Sequence[DocumentFile], start: int, end: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset, and the JSON of the documents whose line begins in [start, end). Raises
    ``DataError``.
    """
    base = 0
    for file in files:
        first, last = max(start - base, 0), min(end - base, file.bytes)
        if first < last:
            for offset, document in _read_file(folder / file.name, first, last):
                yield base + offset, document
        base += file.bytes


def _read_file(path: Path, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
    with reading(path, AGAIN), open_plain(path) as file:
        offset = 0
        if first:  # a line that begins earlier belongs to the slice before
            file.seek(first - 1)
            offset = first - 1 + len(file.readline())
        while offset < last:
            line = file.readline()
            try:
                document = parse_json(line)
                if not isinstance(document["text"], str):
                    raise ValueError("its text is none")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"at byte {offset:,} is not a document of the corpus: {error}"
                ) from None
            yield offset, document
            offset += len(line)
            count(len(line))


def tokenize_slice(
    folder: Path,
    files: Sequence[DocumentFile],
    start: int,
    end: int,
    *,
    tokenizer: Tokenizer,
    dataset: Manifest,
) -> Iterator[TokenizedDocument]:
    """The documents whose line begins in [start, end), as those of ``dataset``."""
    documents = read_slice(folder, files, start, end)
    if dataset.has_turns:
        yield from tokenize_dialogues(documents, dataset, tokenizer)
        return
    encode = _encode_parts(tokenizer, dataset)
    for offset, document in documents:
        text = document["text"]
        edges = np.cumsum([0, *document.get("parts", [len(text)])]).tolist()
        # Part by part, as no piece may reach over the edge between two of them.
        parts = [encode(text[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
        begin = [] if dataset.bos_id is None else [dataset.bos_id]
        bos, eos = (np.array(ids, dtype=dataset.dtype) for ids in (begin, [dataset.eos_id]))
        yield TokenizedDocument(
            ids=np.concatenate([bos, *parts, eos]),
            text_bytes=len(text.encode()),
            offset=offset,
            members=_fill_members(document, dataset, len(bos), parts, tokenizer)
            if dataset.members
            else {},
        )


def _fill_members(
    document: Mapping[str, Any],
    dataset: Manifest,
    num_before: int,
    parts: Sequence[np.ndarray],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """The values of the dataset's members of a document, of whose parts these are the ids.

    A word's tag stands at its first token with more than the white space before it.
    """
    firsts = num_before + np.cumsum([0, *map(len, parts)])
    values: dict[str, Any] = {}
    if dataset.has_pairs:
        values[PARTS] = firsts[1]
    if dataset.labels is None:
        return values
    if dataset.labels.kind == "spans":
        span = _find_span(document, parts[1], tokenizer)
        places = (0, 0) if span is None else (firsts[1] + span[0], firsts[1] + span[1])
        return {**values, **dict(zip(SPANS, places, strict=True))}
    if dataset.labels.kind != "tags":
        return {**values, LABELS: document["label"]}
    values[TAGS] = np.full(firsts[-1] + 1, NO_TAG, dtype=np.int64)
    begin = 0
    for first, part, num_chars, tag in zip(
        firsts, parts, document["parts"], document["tags"], strict=False
    ):
        word = document["text"][begin : begin + num_chars]
        begin += num_chars
        num_blank = len(word[: num_chars - len(word.lstrip())].encode())
        values[TAGS][first + _find_word(part, num_blank, tokenizer)] = tag
    return values


def _find_span(
    document: Mapping[str, Any], ids: np.ndarray, tokenizer: Tokenizer
) -> tuple[int, int] | None:
    """The first and the last of the context's tokens that cover the answer."""
    if not document.get("span"):
        return None
    text, num_before = document["text"], document["parts"][0]
    begin, end = (at - num_before for at in document["span"])
    return find_tokens(tokenizer, text[num_before:], ids, begin, end)


def _find_word(ids: np.ndarray, num_blank: int, tokenizer: Tokenizer) -> int:
    """The first token of a word that ``num_blank`` bytes of white space stand before."""
    token_bytes = tokenizer.token_bytes()
    if token_bytes is not None:
        return int(np.searchsorted(token_bytes[ids].cumsum(), num_blank, side="right"))
    texts = (tokenizer.decode_bytes([number]) for number in ids.tolist())
    return next((place for place, text in enumerate(texts) if not text.isspace()), 0)


def _encode_parts(tokenizer: Tokenizer, dataset: Manifest) -> Callable[[str], np.ndarray]:
    """How a document's parts are encoded. In a dataset with members a part has a token at least,
    also where the tokenizer drops all that is in it: else what is said of it would have no place.
    """
    unk_id = tokenizer.unk_id
    if tokenizer.is_exact or not dataset.members or unk_id is None:
        return tokenizer.encode
    nothing = np.array([unk_id], dtype=tokenizer.dtype)

    def encode(text: str) -> np.ndarray:
        ids = tokenizer.encode(text)
        return ids if len(ids) else nothing

    return encode
