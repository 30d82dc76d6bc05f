"""A slice of the corpus, tokenised into shards by one process, with a record of each shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lmscale.corpus.documents import DocumentFile
from lmscale.errors import DataError
from lmscale.files.atomic import atomic_path, write_json, writing
from lmscale.shards.manifest import ShardEntry
from lmscale.shards.plan import Slice, read_slice
from lmscale.shards.writer import Documents, ShardRules, TokenizedDocument, write_shard
from lmscale.tasks.target import Unit, UnitsMissing
from lmscale.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class SliceTask(Unit):
    """One slice to tokenise; crosses to a worker process."""

    slice: Slice
    documents: Path
    files: tuple[DocumentFile, ...]
    parts: Path  # where the finished shards and their records go
    tokenizer_folder: Path
    rules: ShardRules

    @property
    def bytes(self) -> int:
        return self.slice.bytes

    def is_done(self) -> bool:
        records = _records(self.parts, self.slice)
        return bool(records) and records[-1].next_offset is None

    def do(self) -> int:
        return build_slice(self)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Says that one part of a slice is finished: its shard, if any, and where to go on."""

    entry: ShardEntry | None
    next_offset: int | None  # None: the slice is finished


def build_slice(task: SliceTask) -> int:
    """Write the slice's missing shards; returns the number of shards written."""
    name = f"part-{task.slice.number:05d}"
    records = _records(task.parts, task.slice)
    if records and records[-1].next_offset is None:
        return 0
    start = task.slice.start
    if records and records[-1].next_offset is not None:
        start = records[-1].next_offset
    tokenizer = _tokenizer(task.tokenizer_folder, task.rules.tokenizer_fingerprint)
    written = 0
    with writing("shards", task.parts):
        documents = Documents(_tokenize(task, start, tokenizer))
        while True:
            number = len(records) + written
            entry = None
            if documents.peek() is not None:
                shard = f"{name}-{number:03d}.tar"
                key = f"{task.rules.source}-{task.slice.number:05d}-{number:03d}"
                with atomic_path(task.parts / shard) as temporary:
                    entry = write_shard(
                        temporary, name=shard, key=key, documents=documents, rules=task.rules
                    )
            rest = documents.peek()
            record = _Record(entry=entry, next_offset=rest.offset if rest else None)
            write_json(task.parts / f"{name}-{number:03d}.json", asdict(record))
            written += 1
            if rest is None:
                return written


def finished_shards(parts: Path, slices: Sequence[Slice]) -> list[ShardEntry]:
    """The shards of all slices in order. Raises ``UnitsMissing`` for unfinished slices."""
    entries, missing = [], []
    for part in slices:
        records = _records(parts, part)
        if not records or records[-1].next_offset is not None:
            missing.append(part.number)
        entries += [record.entry for record in records if record.entry is not None]
    if missing:
        raise UnitsMissing(missing)
    return entries


def _records(parts: Path, part: Slice) -> list[_Record]:
    """A slice's records up to the first that is missing or whose shard is not whole."""
    records = []
    while True:
        path = parts / f"part-{part.number:05d}-{len(records):03d}.json"
        if not path.exists():
            return records
        tree = json.loads(path.read_bytes())
        entry = ShardEntry(**tree["entry"]) if tree["entry"] else None
        if entry is not None:
            shard = parts / entry.name
            if not shard.is_file() or shard.stat().st_size != entry.bytes:
                return records
        records.append(_Record(entry=entry, next_offset=tree["next_offset"]))


def _tokenize(task: SliceTask, start: int, tokenizer: Tokenizer) -> Iterator[TokenizedDocument]:
    eos = np.array([tokenizer.eos_id], dtype=tokenizer.dtype)
    for offset, text in read_slice(task.documents, task.files, start, task.slice.end):
        yield TokenizedDocument(
            ids=np.concatenate([tokenizer.encode(text), eos]),
            text_bytes=len(text.encode()),
            offset=offset,
        )


@lru_cache(maxsize=1)  # once a process, not once a slice
def _tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"{folder}: the tokenizer has changed during the build. Run it again.")
    return tokenizer
