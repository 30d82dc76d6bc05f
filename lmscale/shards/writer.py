"""Write one shard: blocks of whole documents in a USTAR tar, closed by an index of their offsets.

The tar is the one that ``webdataset.TarWriter(mtime=0)`` writes, byte for byte (a test compares
them). It is written with ``tarfile`` because importing webdataset loads torch, in each process.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.files.arrays import NPY_HEADER_BYTES, to_npy
from lmscale.shards.manifest import Manifest, ShardEntry
from lmscale.shards.members import HEADER_BYTES, padded

INDEX_MEMBER = "__index__/blocks.npy"
META_BYTES = 1024  # more than a block's meta.json ever takes


@dataclass(frozen=True, kw_only=True)
class TokenizedDocument:
    """A document's ids, bos and eos included; ``offset``: its line begins there in the split."""

    ids: np.ndarray  # uint16 or uint32 [tokens]
    text_bytes: int
    offset: int
    members: Mapping[str, Any] = field(default_factory=dict)
    """Of each member of its dataset (``Manifest.members``) the value, or [tokens] of them."""


class Documents:
    """An iterator that can be asked for its next document without taking it."""

    def __init__(self, documents: Iterator[TokenizedDocument]) -> None:
        self._documents = documents
        self._next = next(documents, None)

    def peek(self) -> TokenizedDocument | None:
        return self._next

    def take(self) -> TokenizedDocument:
        taken, self._next = self._next, next(self._documents, None)
        if taken is None:
            raise StopIteration
        return taken


def write_shard(
    path: Path, *, name: str, key: str, documents: Documents, dataset: Manifest, max_bytes: int
) -> ShardEntry:
    """Take documents until the next would make the tar pass ``max_bytes``, and write them.

    Takes at least one document, however large. ``key`` begins the names of the blocks, and
    ``dataset`` says where a block ends, and what every block says about itself.
    """
    with open(path, "wb") as file:
        shard = _OpenShard(file, key, dataset)
        block: list[TokenizedDocument] = []
        block_tokens = 0
        while (document := documents.peek()) is not None:
            tokens = block_tokens + len(document.ids)
            fits = shard.size_with(tokens, len(block) + 1) <= max_bytes
            if not fits and (block or shard.blocks):
                break
            block.append(documents.take())
            block_tokens = tokens
            if block_tokens >= dataset.block_tokens:
                shard.add_block(block)
                block, block_tokens = [], 0
        if block:
            shard.add_block(block)
        return shard.finish(name)


class _HashedFile:
    """Hashes what passes through, so that a shard is not read again for its sha256."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()


class _OpenShard:
    def __init__(self, file: io.BufferedWriter, key: str, dataset: Manifest) -> None:
        self._hashed = _HashedFile(file)
        self._tar = tarfile.TarFile(
            mode="w",
            fileobj=self._hashed,  # pyright: ignore[reportArgumentType]  # it needs write and tell only
            format=tarfile.USTAR_FORMAT,
        )
        self._key = key
        self._dataset = dataset
        self._members = dataset.members
        self._itemsize = np.dtype(dataset.dtype).itemsize
        self._text_bytes = 0
        self.blocks: list[tuple[int, int, int, int]] = []

    def size_with(self, num_tokens: int, num_documents: int) -> int:
        """Most bytes the tar would have if it ended after one more block of this size."""
        arrays = [num_tokens * self._itemsize, (num_documents + 1) * 8, (len(self.blocks) + 1) * 32]
        arrays += [
            member.count(num_tokens, num_documents) * member.dtype.itemsize
            for member in self._members
        ]
        payloads = (*(NPY_HEADER_BYTES + size for size in arrays), META_BYTES)
        members = sum(HEADER_BYTES + padded(size) for size in payloads)
        return self._tar.offset + members + 2 * HEADER_BYTES + tarfile.RECORDSIZE

    def add_block(self, block: list[TokenizedDocument]) -> None:
        tokens = np.concatenate([document.ids for document in block])
        tokens = tokens.astype(np.dtype(self._dataset.dtype).newbyteorder("<"), copy=False)
        docs = np.zeros(len(block) + 1, dtype="<i8")
        np.cumsum([len(document.ids) for document in block], out=docs[1:])
        text_bytes = sum(document.text_bytes for document in block)
        key = f"{self._key}-{len(self.blocks):04d}"
        meta = {
            "source": self._dataset.source,
            "split": self._dataset.split,
            "tokenizer": self._dataset.tokenizer_fingerprint,
            "tokens": len(tokens),
            "documents": len(block),
            "text_bytes": text_bytes,
        }
        contents = {"docs.npy": to_npy(docs), "tokens.npy": to_npy(tokens)}
        contents["meta.json"] = json.dumps(meta).encode()
        for name, dtype, is_of_tokens, _ in self._members:
            values = [document.members[name] for document in block]
            joined = np.concatenate(values) if is_of_tokens else np.array(values)
            contents[f"{name}.npy"] = to_npy(joined.astype(dtype))
        # The order of the extensions, which is that of TarWriter.
        offsets = {name: self._add(f"{key}.{name}", contents[name]) for name in sorted(contents)}
        docs_offset, tokens_offset = (
            offsets[name] + NPY_HEADER_BYTES for name in ("docs.npy", "tokens.npy")
        )
        self.blocks.append((tokens_offset, len(tokens), docs_offset, len(block)))
        self._text_bytes += text_bytes

    def finish(self, name: str) -> ShardEntry:
        index_offset = self._tar.offset
        index = np.array(self.blocks, dtype="<i8").reshape(-1, 4)
        self._add(INDEX_MEMBER, to_npy(index))
        self._tar.close()
        return ShardEntry(
            name=name,
            bytes=self._hashed.tell(),
            tokens=int(index[:, 1].sum()),
            documents=int(index[:, 3].sum()),
            blocks=len(index),
            text_bytes=self._text_bytes,
            index_offset=index_offset,
            sha256=self._hashed.digest.hexdigest(),
        )

    def _add(self, name: str, content: bytes) -> int:
        """Append a member; returns where its payload begins."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o444
        member.uname = member.gname = "bigdata"  # TarWriter's default
        payload = self._tar.offset + HEADER_BYTES
        self._tar.addfile(member, io.BytesIO(content))
        return payload
