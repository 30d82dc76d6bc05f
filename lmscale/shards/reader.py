"""Open a shard for reading by memory map: any block's tokens and document offsets as views."""

from __future__ import annotations

import io
import mmap
import tarfile
from pathlib import Path

import numpy as np

from lmscale.errors import DataError, TransientError
from lmscale.files import fault_points
from lmscale.files.atomic import may_pass
from lmscale.files.tar_members import describe_unsafe
from lmscale.shards.manifest import ShardEntry
from lmscale.shards.writer import HEADER_BYTES, INDEX_MEMBER, NPY_HEADER_BYTES, padded


class MappedShard:
    """A shard in memory-mapped form. Views stay valid for as long as they are held."""

    def __init__(self, path: Path, content: mmap.mmap, index: np.ndarray, dtype: np.dtype) -> None:
        self.path = path
        self.index = index  # int64 [blocks, 4]: tokens offset, tokens, docs offset, documents
        self._content = content
        self._dtype = dtype

    @property
    def num_blocks(self) -> int:
        return len(self.index)

    def tokens(self, block: int) -> np.ndarray:
        """uint16 or uint32 [tokens]: a view, read-only."""
        offset, count = int(self.index[block, 0]), int(self.index[block, 1])
        return np.frombuffer(self._content, dtype=self._dtype, count=count, offset=offset)

    def docs(self, block: int) -> np.ndarray:
        """int64 [documents + 1]: where documents begin within the block; the last is its length."""
        offset, count = int(self.index[block, 2]), int(self.index[block, 3])
        return np.frombuffer(self._content, dtype="<i8", count=count + 1, offset=offset)


def open_shard(path: str | Path, entry: ShardEntry, dtype: str | np.dtype) -> MappedShard:
    """Map a shard and check its size, its index and the headers that the index points to.

    Reads a few pages only: hashing the whole is the business of who fetched it. Raises
    ``DataError`` naming the file.
    """
    path = Path(path)
    try:
        fault_points.hit("read.shard", path=path)
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is listed in the manifest and missing.") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        kind = TransientError if may_pass(error) else DataError
        raise kind(f"{path}: the shard cannot be opened: {error}.") from None
    if len(content) != entry.bytes:
        kind = "cut off" if len(content) < entry.bytes else "not the one in the manifest"
        raise DataError(
            f"{path}: the shard is {kind}: {len(content):,} bytes where the manifest says "
            f"{entry.bytes:,}. Fetch or build it again."
        )
    stored = np.dtype(dtype).newbyteorder("<")
    index = _read_index(path, content, entry)
    problem = _index_problem(index, entry, stored.itemsize) or _first_header_problem(
        content, index, stored
    )
    if problem:
        raise DataError(
            f"{path}: the shard's index is damaged: {problem}. Fetch or build it again."
        )
    return MappedShard(path, content, index, stored)


def _read_index(path: Path, content: mmap.mmap, entry: ShardEntry) -> np.ndarray:
    """int64 [blocks, 4] from the last member."""
    start = entry.index_offset
    try:
        header = tarfile.TarInfo.frombuf(content[start : start + HEADER_BYTES], "utf-8", "strict")
        if header.name != INDEX_MEMBER:
            raise ValueError(f"found the member {header.name!r} in its place")
        if unsafe := describe_unsafe(header):
            raise ValueError(unsafe)
        payload = content[start + HEADER_BYTES : start + HEADER_BYTES + header.size]
        index = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
        if index.dtype != np.int64 or index.shape != (entry.blocks, 4):
            raise ValueError(
                f"{index.dtype} {index.shape} where int64 ({entry.blocks}, 4) should be"
            )
    except (tarfile.HeaderError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: the shard has no readable index at byte {start:,}: {error}. Fetch "
            f"or build it again."
        ) from None
    return index


def _index_problem(index: np.ndarray, entry: ShardEntry, itemsize: int) -> str | None:
    tokens_at, num_tokens, docs_at, num_documents = index.T
    if (index < 0).any():
        return "it holds negative numbers"
    if int(num_tokens.sum()) != entry.tokens or int(num_documents.sum()) != entry.documents:
        return (
            f"it counts {int(num_tokens.sum()):,} tokens in {int(num_documents.sum()):,} "
            f"documents; the manifest says {entry.tokens:,} in {entry.documents:,}"
        )
    # As written: docs, meta (of unknown size), tokens, and then the next block or the index. The
    # offsets lie behind numpy's header, with which a member's payload begins.
    first, header = HEADER_BYTES + NPY_HEADER_BYTES, NPY_HEADER_BYTES
    docs_end = docs_at - header + padded(header + (num_documents + 1) * 8)
    tokens_end = tokens_at - header + padded(header + num_tokens * itemsize)
    next_docs = np.append(docs_at[1:], entry.index_offset + first)
    if (
        docs_at[0] != first
        or (tokens_end + first != next_docs).any()
        or (docs_end > tokens_at).any()
    ):
        return "its offsets do not follow one another"
    return None


def _first_header_problem(content: mmap.mmap, index: np.ndarray, dtype: np.dtype) -> str | None:
    """Why the first block's array cannot be read with ``dtype``, or None."""
    start = int(index[0, 0]) - NPY_HEADER_BYTES
    try:
        header = io.BytesIO(content[start : start + NPY_HEADER_BYTES])
        np.lib.format.read_magic(header)
        shape, _, written = np.lib.format.read_array_header_1_0(header)
    except ValueError as error:
        return f"no array at byte {start:,}: {error}"
    if written != dtype or shape != (int(index[0, 1]),):
        return f"it points to {written} {shape} where {dtype} ({index[0, 1]},) should be"
    return None
