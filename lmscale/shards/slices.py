"""Slices of a corpus: which there are, and the documents of each.

A split's document files are laid end to end and cut into slices of equal size, each expected to
fill one shard. A slice is tokenised by one process, so the shards do not depend on their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.corpus.documents import DocumentFile
from lmscale.errors import DataError
from lmscale.tokenizer.codec import Tokenizer

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


def expect_bytes(folder: Path, files: Sequence[DocumentFile], tokenizer: Tokenizer) -> float:
    """About how many bytes of tokens the files will make, from a few places in them."""
    total = sum(file.bytes for file in files)
    read = tokens = 0
    for probe in range(PROBES):
        start = total * probe // PROBES
        for offset, text in read_slice(folder, files, start, total):
            if offset >= start + min(PROBE_BYTES, -(-total // PROBES)):
                break
            read += len(text.encode())
            tokens += len(tokenizer.encode(text)) + 1
    # The lines hold more than the text: keys, ids, escapes. It makes the shards a little smaller.
    return total * tokens / max(read, 1) * tokenizer.dtype.itemsize


def read_slice(
    folder: Path, files: Sequence[DocumentFile], start: int, end: int
) -> Iterator[tuple[int, str]]:
    """(offset, text) of the documents whose line begins in [start, end). Raises ``DataError``."""
    base = 0
    for file in files:
        first, last = max(start - base, 0), min(end - base, file.bytes)
        if first < last:
            for offset, text in _read_file(folder / file.name, first, last):
                yield base + offset, text
        base += file.bytes


def _read_file(path: Path, first: int, last: int) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        offset = 0
        if first:  # a line that begins earlier belongs to the slice before
            file.seek(first - 1)
            offset = first - 1 + len(file.readline())
        while offset < last:
            line = file.readline()
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: byte {offset:,}: not a document of the corpus: {error}. "
                    f"Build the corpus again with --force."
                ) from None
            yield offset, text
            offset += len(line)
