"""Slices of a corpus: which there are, and how one becomes shards, each with a record of it.

A split's document files are laid end to end and cut into slices of equal size, each expected to
fill one shard. A slice is tokenised by one process, so the shards do not depend on their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lmscale.corpus.documents import DocumentFile
from lmscale.errors import DataError
from lmscale.files.atomic import atomic_path, have_sizes, write_json, writing
from lmscale.shards.manifest import ShardEntry
from lmscale.shards.writer import Documents, ShardRules, TokenizedDocument, write_shard
from lmscale.tasks.target import Unit, UnitsMissing
from lmscale.tokenizer import Tokenizer

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


@dataclass(frozen=True, kw_only=True)
class SliceTask(Unit):
    """One slice to tokenise; crosses to a worker process."""

    slice: Slice
    documents: Path
    files: tuple[DocumentFile, ...]
    parts: Path  # where the finished shards and their records go
    tokenizer: Tokenizer
    rules: ShardRules

    @property
    def bytes(self) -> int:
        return self.slice.bytes

    def is_done(self) -> bool:
        return self.find_finished()[1] is None

    def do(self) -> None:
        """Write the slice's missing shards."""
        entries, start = self.find_finished()
        if start is None:
            return
        number = len(entries)
        with writing("shards", self.parts):
            documents = Documents(self._tokenize(start))
            while start is not None:
                name = self._name_of(number)
                entry = None
                if documents.peek() is not None:
                    key = f"{self.rules.source}-{self.slice.number:05d}-{number:03d}"
                    with atomic_path(self.parts / f"{name}.tar") as temporary:
                        entry = write_shard(
                            temporary,
                            name=f"{name}.tar",
                            key=key,
                            documents=documents,
                            rules=self.rules,
                        )
                rest = documents.peek()
                start = rest.offset if rest else None
                record = {"entry": asdict(entry) if entry else None, "next_offset": start}
                write_json(self.parts / f"{name}.json", record)
                number += 1

    def find_finished(self) -> tuple[list[ShardEntry | None], int | None]:
        """A record's shard, if it has one, for each record up to the first that is missing or whose
        shard is not whole; and the offset where to go on, None if the slice is finished.
        """
        entries: list[ShardEntry | None] = []
        start: int | None = self.slice.start
        while start is not None:
            path = self.parts / f"{self._name_of(len(entries))}.json"
            if not path.exists():
                break
            record = json.loads(path.read_bytes())
            entry = ShardEntry(**record["entry"]) if record["entry"] else None
            if entry is not None and not have_sizes([(self.parts / entry.name, entry.bytes)]):
                break
            entries.append(entry)
            start = record["next_offset"]
        return entries, start

    def _name_of(self, number: int) -> str:
        return f"part-{self.slice.number:05d}-{number:03d}"

    def _tokenize(self, start: int) -> Iterator[TokenizedDocument]:
        eos = np.array([self.tokenizer.eos_id], dtype=self.tokenizer.dtype)
        for offset, text in read_slice(self.documents, self.files, start, self.slice.end):
            yield TokenizedDocument(
                ids=np.concatenate([self.tokenizer.encode(text), eos]),
                text_bytes=len(text.encode()),
                offset=offset,
            )


def finished_shards(tasks: Sequence[SliceTask]) -> list[ShardEntry]:
    """The shards of all slices in order. Raises ``UnitsMissing`` for unfinished slices."""
    found = [task.find_finished() for task in tasks]
    missing = [number for number, (_, start) in enumerate(found) if start is not None]
    if missing:
        raise UnitsMissing(missing)
    return [entry for entries, _ in found for entry in entries if entry is not None]


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
