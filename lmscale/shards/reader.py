"""Open a shard for reading by memory map: any block's tokens and document offsets as views."""

from __future__ import annotations

import math
import mmap
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmscale.errors import DataError, TransientError
from lmscale.files.arrays import NPY_HEADER_BYTES, npy_header
from lmscale.files.atomic import may_pass
from lmscale.files.reading import open_plain
from lmscale.files.strangers import quote
from lmscale.files.tar_members import describe_unsafe
from lmscale.shards.manifest import ShardEntry
from lmscale.shards.members import (
    HEADER_BYTES,
    PARTS,
    Member,
    find_wrong_values,
    locate_members,
    padded,
)
from lmscale.shards.writer import INDEX_MEMBER


class MappedShard:
    """A shard in memory-mapped form. Views stay valid for as long as they are held."""

    def __init__(
        self,
        path: Path,
        content: mmap.mmap,
        index: np.ndarray,
        dtype: np.dtype,
        members: Sequence[Member] = (),
    ) -> None:
        self.path = path
        self.index = index  # int64 [blocks, 4]: tokens offset, tokens, docs offset, documents
        self.members = {member.name: member for member in members}
        self.places = locate_members(members, index)[0]  # name → int64 [blocks]: of the values
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

    def values(self, name: str, block: int) -> np.ndarray:
        """[documents], or [tokens]: those of a member, a view."""
        member = self.members[name]
        count = member.count(int(self.index[block, 1]), int(self.index[block, 3]))
        offset = int(self.places[name][block])
        return np.frombuffer(self._content, dtype=member.dtype, count=count, offset=offset)


def open_shard(
    path: str | Path,
    entry: ShardEntry,
    dtype: str | np.dtype,
    members: Sequence[Member] = (),
) -> MappedShard:
    """Map a shard and check its size, its index, and where its documents begin. ``members``: those
    of its dataset.

    Reads nothing of the tokens: for that, and for the hash, there is ``contents.check_shard``.
    Raises ``DataError`` naming the file.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
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
    if problem := _index_problem(index, entry, stored.itemsize, members):
        raise DataError(
            f"{path}: the shard's index is damaged: {problem}. Fetch or build it again."
        )
    shard = MappedShard(path, content, index, stored, members)
    if problem := _block_problem(content, shard, stored):
        raise DataError(f"{path}: the shard is damaged at {problem}. Fetch or build it again.")
    return shard


def _read_index(path: Path, content: mmap.mmap, entry: ShardEntry) -> np.ndarray:
    """int64 [blocks, 4] from the last member."""
    start, shape = entry.index_offset, (entry.blocks, 4)
    at = start + HEADER_BYTES + NPY_HEADER_BYTES
    try:
        header = tarfile.TarInfo.frombuf(content[start : start + HEADER_BYTES], "utf-8", "strict")
        if header.name != INDEX_MEMBER:
            raise ValueError(f"found the member {quote(header.name)} in its place")
        if unsafe := describe_unsafe(header):
            raise ValueError(unsafe)
        if not _is_array(content, at, np.dtype("<i8"), shape):
            raise ValueError(f"there is no array of int64 {shape}")
    except (tarfile.HeaderError, ValueError) as error:
        raise DataError(
            f"{path}: the shard has no readable index at byte {start:,}: {error}. Fetch "
            f"or build it again."
        ) from None
    return np.frombuffer(content, "<i8", count=4 * entry.blocks, offset=at).reshape(shape)


def _is_array(content: mmap.mmap, at: int, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a whole array of this kind is in the file, its values at byte ``at``."""
    begin = at - NPY_HEADER_BYTES
    is_inside = 0 <= begin and at + math.prod(shape) * dtype.itemsize <= len(content)
    return is_inside and content[begin:at] == npy_header(dtype, shape)


def _index_problem(
    index: np.ndarray, entry: ShardEntry, itemsize: int, members: Sequence[Member]
) -> str | None:
    tokens_at, num_tokens, docs_at, num_documents = index.T
    if (index < 0).any() or (index > entry.bytes).any():  # so that nothing below overflows
        return "it holds numbers of no place in the file"
    if (num_documents < 1).any():
        return "it holds a block without documents"
    if int(num_tokens.sum()) != entry.tokens or int(num_documents.sum()) != entry.documents:
        return (
            f"it counts {int(num_tokens.sum()):,} tokens in {int(num_documents.sum()):,} "
            f"documents; the manifest says {entry.tokens:,} in {entry.documents:,}"
        )
    # As written: docs and what follows them, tokens, and then the next block or the index. The
    # offsets lie behind numpy's header, with which a member's payload begins.
    first, header = HEADER_BYTES + NPY_HEADER_BYTES, NPY_HEADER_BYTES
    tokens_end = tokens_at - header + padded(header + num_tokens * itemsize)
    next_docs = np.append(docs_at[1:], entry.index_offset + first)
    _, meta_begin, meta_end = locate_members(members, index)
    if (
        docs_at[0] != first
        or (tokens_end + first != next_docs).any()
        or (meta_begin > meta_end).any()
    ):
        return "its offsets do not follow one another"
    return None


def _block_problem(content: mmap.mmap, shard: MappedShard, dtype: np.dtype) -> str | None:
    """Why a block's arrays are not those that the index points to, or None."""
    for block, (tokens_at, num_tokens, docs_at, num_documents) in enumerate(shard.index.tolist()):
        where = f"where block {block} should have"
        if not _is_array(content, tokens_at, dtype, (num_tokens,)):
            return f"byte {tokens_at:,}, {where} {num_tokens:,} tokens of {dtype}"
        if not _is_array(content, docs_at, np.dtype("<i8"), (num_documents + 1,)):
            return f"byte {docs_at:,}, {where} the offsets of {num_documents:,} documents"
        for name, member in shard.members.items():
            at = int(shard.places[name][block])
            count = member.count(num_tokens, num_documents)
            if not _is_array(content, at, member.dtype, (count,)):
                return f"byte {at:,}, {where} {name}: {count:,} numbers of {member.dtype}"
        docs = shard.docs(block)
        if docs[0] != 0 or docs[-1] != num_tokens or (docs[1:] <= docs[:-1]).any():
            return f"byte {docs_at:,}, {where} document offsets that ascend from 0 to its end"
        parts = {PARTS: shard.values(PARTS, block)} if PARTS in shard.members else {}
        for problem in find_wrong_values(parts, docs, None):
            return f"block {block}: {problem}"
    return None
